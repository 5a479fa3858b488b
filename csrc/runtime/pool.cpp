// Threads of our own, where OpenMP is not compiled in: started on demand, asleep between calls, never ended.
#ifndef _OPENMP
#include "runtime/pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/spin.h"
#include "thresholds.h"

namespace lstm_fused {
namespace {

// A call, on the stack of its caller.
struct Call {
  const std::function<void(int, int)>& body;
  int size;
  std::atomic<int> unfinished;  // workers
};

class Worker {
 public:
  Worker() {
    std::thread([this] { work(); }).detach();
  }

  void start(Call& call, int rank) {
    rank_ = rank;
    {
      const std::lock_guard lock{mutex_};
      call_.store(&call, std::memory_order_release);
    }
    wake_.notify_one();
  }

 private:
  [[noreturn]] void work() {
    const auto called = [this] { return call_.load(std::memory_order_acquire) != nullptr; };
    for (;;) {
      if (!spin(worker_spins, called)) {
        std::unique_lock lock{mutex_};
        wake_.wait(lock, called);
      }
      Call& call = *call_.load(std::memory_order_acquire);
      call.body(rank_, call.size);
      // With the count down, the caller may return and another one start this worker.
      call_.store(nullptr, std::memory_order_relaxed);
      call.unfinished.fetch_sub(1, std::memory_order_release);
    }
  }

  std::atomic<Call*> call_{nullptr};
  int rank_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

// The workers that run no call, those with low ranks last: calls take the same threads, whose caches hold
// their share of the data.
struct Idle {
  std::mutex mutex;
  std::vector<Worker*> workers;
  size_t started = 0;

  std::vector<Worker*> take(size_t count) {
    const std::lock_guard lock{mutex};
    try {
      while (workers.size() < count) {
        workers.reserve(++started);  // give_back then allocates nothing
        workers.insert(workers.begin(), new Worker);
      }
    } catch (const std::system_error&) {  // the system starts no more threads
    }
    const auto first = workers.end() - static_cast<std::ptrdiff_t>(std::min(count, workers.size()));
    const std::vector<Worker*> taken(first, workers.end());
    workers.erase(first, workers.end());
    return taken;
  }

  void give_back(const std::vector<Worker*>& taken) {
    const std::lock_guard lock{mutex};
    workers.insert(workers.end(), taken.begin(), taken.end());
  }
};

// Never destroyed: threads wait for it until the process ends.
Idle& idle = *new Idle;

// A forked child has none of its parent's threads: it forgets them, and starts others.
[[maybe_unused]] const int child_starts_anew =
    pthread_atfork([] { idle.mutex.lock(); }, [] { idle.mutex.unlock(); },
                   [] {
                     idle.workers.clear();
                     idle.mutex.unlock();
                   });

}  // namespace

void run_together(int threads, const std::function<void(int, int)>& body) {
  const std::vector<Worker*> workers = idle.take(static_cast<size_t>(threads) - 1);
  const int size = static_cast<int>(workers.size()) + 1;
  Call call{body, size, size - 1};
  for (int rank = 1; rank < size; ++rank) workers[static_cast<size_t>(size - 1 - rank)]->start(call, rank);
  body(0, size);
  const auto finished = [&] { return call.unfinished.load(std::memory_order_acquire) == 0; };
  if (!spin(barrier_spins, finished)) yield_until(finished);
  idle.give_back(workers);
}

}  // namespace lstm_fused
#endif
