// Arrays on pages of 2 MiB: a step reads all weights, one after the other, and with pages of 4 KiB a part of the time
// goes into finding where each page lies.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

constexpr uintptr_t HUGE_PAGE = 2 * 1024 * 1024;

// Ask for these pages, once for each array. Those that it shares with others are exchanged, too, which changes nothing
// that a program can see. Linux does so at once from 6.1 on, before that bit by bit; where it cannot, pages stay small.
inline void on_huge_pages(const float *values, int64_t count) {
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, which older headers lack
  static std::mutex mutex;
  static std::set<std::pair<uintptr_t, uintptr_t>> asked;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(values), end = begin + count * sizeof(float);
  std::lock_guard<std::mutex> lock(mutex);
  if (!asked.emplace(begin, end).second) return;
  for (uintptr_t page = begin / HUGE_PAGE * HUGE_PAGE; page < end; page += HUGE_PAGE) {
    madvise(reinterpret_cast<void *>(page), HUGE_PAGE, MADV_HUGEPAGE);
    madvise(reinterpret_cast<void *>(page), HUGE_PAGE, COLLAPSE);
  }
}
