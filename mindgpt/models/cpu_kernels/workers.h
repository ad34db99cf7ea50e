// A few threads that share out the tiles of one kernel after another.
//
// Kernels of a decoding step take some 50 microseconds and follow one another within a few, so a worker that has
// nothing to do looks for the next one for a while before it goes to sleep. Whoever is awake takes the next tile: a
// worker that wakes late, or is put aside by the system, delays nobody but for the tile it is at.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

class Workers {
 public:
  static Workers &get() {
    static Workers *workers = new Workers;  // never destroyed: its threads run until the process ends
    return *workers;
  }

  // How many threads there are to be, the caller's among them; to be set before the first kernel runs.
  static int &wanted() {
    static int threads = 1;
    return threads;
  }

  int count() const { return threads_; }

  // Call task(tile) for each tile, on all threads, and return when all are done.
  template <typename Task>
  void run(int64_t tiles, const Task &task) {
    std::unique_lock<std::mutex> turn(one_at_a_time_, std::try_to_lock);
    if (threads_ == 1 || tiles == 1 || !turn.owns_lock() || getpid() != process_) {  // a forked child has no workers
      for (int64_t tile = 0; tile < tiles; ++tile) task(tile);
      return;
    }
    const Call call = [](const void *task, int64_t tile) { (*static_cast<const Task *>(task))(tile); };
    call_.store(call, std::memory_order_relaxed);
    task_.store(&task, std::memory_order_relaxed);
    tiles_.store(tiles, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t kernel = (next_.load(std::memory_order_relaxed) >> 32) + 1;
    next_.store(kernel << 32);
    if (sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    work_on(kernel);
    for (int turns = 0; done_.load(std::memory_order_acquire) < tiles; ++turns) rest(turns);
  }

 private:
  using Call = void (*)(const void *, int64_t);
  static constexpr std::chrono::microseconds LOOKS_FOR{300};

  Workers() : threads_(wanted()), process_(getpid()) {
    for (int i = 1; i < threads_; ++i) std::thread([this] { live(); }).detach();
  }

  // Take tiles of this kernel until there are none left, or it is over. `next_` holds its number in the upper half.
  void work_on(uint64_t kernel) {
    const Call call = call_.load(std::memory_order_relaxed);
    const void *task = task_.load(std::memory_order_relaxed);
    const int64_t tiles = tiles_.load(std::memory_order_relaxed);
    uint64_t next = next_.load(std::memory_order_acquire);
    while (next >> 32 == kernel && static_cast<int64_t>(next & 0xffffffff) < tiles) {
      if (next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) {
        call(task, next & 0xffffffff);  // the kernel cannot be over, nor these be another's, while a tile is not done
        done_.fetch_add(1, std::memory_order_release);
        next = next_.load(std::memory_order_acquire);
      }
    }
  }

  void live() {
    uint64_t seen = 0;
    for (;;) {
      auto since = std::chrono::steady_clock::now();
      for (int turns = 0; next_.load() >> 32 == seen; ++turns) {
        if (turns % 64 == 63 && std::chrono::steady_clock::now() - since > LOOKS_FOR) {
          std::unique_lock<std::mutex> lock(sleep_);
          ++sleeping_;
          wake_.wait(lock, [&] { return next_.load() >> 32 != seen; });
          --sleeping_;
        } else {
          pause();
        }
      }
      seen = next_.load() >> 32;
      work_on(seen);
    }
  }

  static void rest(int turns) {
    if (turns < 1000) {
      pause();
    } else {
      sched_yield();  // more threads than cores: let the one work that is waited for
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int threads_;
  const pid_t process_;
  std::mutex one_at_a_time_, sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<const void *> task_{nullptr};
  std::atomic<int64_t> tiles_{0}, done_{0};
  std::atomic<uint64_t> next_{0};
};
