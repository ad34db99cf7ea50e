// Weights on pages of 2 MiB: a step reads all of them, one after the other, and with pages of 4 KiB a part of the time
// goes into finding where each page lies.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

// Ask for these pages, once for each array. Those that it shares with others are exchanged, too, which changes nothing
// that a program can see. Linux does so at once from 6.1 on, before that bit by bit; where it cannot, pages stay small.
inline void on_huge_pages(const float *values, int64_t count) {
  constexpr uintptr_t PAGE = 2 * 1024 * 1024;
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, which older headers lack
  static std::mutex mutex;
  static std::set<std::pair<uintptr_t, uintptr_t>> asked;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(values), end = begin + count * sizeof(float);
  std::lock_guard<std::mutex> lock(mutex);
  if (!asked.emplace(begin, end).second) return;
  for (uintptr_t page = begin / PAGE * PAGE; page < end; page += PAGE) {
    madvise(reinterpret_cast<void *>(page), PAGE, MADV_HUGEPAGE);
    madvise(reinterpret_cast<void *>(page), PAGE, COLLAPSE);
  }
}
