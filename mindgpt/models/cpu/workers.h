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
#include <system_error>
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

  // Call task(tile) for each tile, fewer than 2^32, on all threads, and return when all are done. No task may throw.
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
    const uint32_t kernel = number(left_.load(std::memory_order_relaxed)) + 1;
    left_.store(uint64_t{kernel} << 32 | tiles);
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

  Workers() : process_(getpid()) {
    try {
      for (; threads_ < wanted(); ++threads_) std::thread([this] { live(); }).detach();
    } catch (const std::system_error &) {  // the system grants no more threads: those that there are do the work
    }
  }

  // What `left_` holds: the kernel's number, which may wrap around, and how many of its tiles nobody has taken yet.
  static uint32_t number(uint64_t left) { return left >> 32; }
  static uint32_t tiles_of(uint64_t left) { return left; }

  // Take tiles of this kernel until there are none left, or it is over.
  void work_on(uint32_t kernel) {
    uint64_t left = left_.load(std::memory_order_acquire);
    while (number(left) == kernel && tiles_of(left) > 0) {
      if (left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) {
        // Only now is it sure that these are this kernel's: it cannot be over while a tile that was taken is not done.
        const int64_t tile = tiles_.load(std::memory_order_relaxed) - tiles_of(left);
        call_.load(std::memory_order_relaxed)(task_.load(std::memory_order_relaxed), tile);
        done_.fetch_add(1, std::memory_order_release);
        left = left_.load(std::memory_order_acquire);
      }
    }
  }

  void live() {
    uint32_t seen = 0;
    for (;;) {
      auto since = std::chrono::steady_clock::now();
      for (int turns = 0; number(left_.load()) == seen; ++turns) {
        if (turns % 64 == 63 && std::chrono::steady_clock::now() - since > LOOKS_FOR) {
          std::unique_lock<std::mutex> lock(sleep_);
          ++sleeping_;
          wake_.wait(lock, [&] { return number(left_.load()) != seen; });
          --sleeping_;
        } else {
          pause();
        }
      }
      seen = number(left_.load());
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

  int threads_ = 1;  // the caller's
  const pid_t process_;
  std::mutex one_at_a_time_, sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<const void *> task_{nullptr};
  std::atomic<int64_t> tiles_{0}, done_{0};
  std::atomic<uint64_t> left_{0};
};
