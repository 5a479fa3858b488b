// A spinning barrier, and the division of work among threads.
#include "runtime/threads.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <thread>

#include "runtime/pool.h"
#include "runtime/spin.h"
#include "thresholds.h"

namespace lstm_fused {

void Barrier::wait(int threads) {
  const unsigned generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    // Sequentially consistent, like the other side: either this thread sees the sleeper, or the sleeper the
    // generation.
    generation_.store(generation + 1);
    if (sleepers_.load() > 0) {
      const std::lock_guard lock{mutex_};
      wake_.notify_all();
    }
    return;
  }
  const auto released = [&] { return generation_.load() != generation; };
  if (spin(polls_, released)) return;
  std::unique_lock lock{mutex_};
  ++sleepers_;
  wake_.wait(lock, released);
  --sleepers_;
}

namespace {

// Cores that this thread may use. std::thread::hardware_concurrency() reads files, for 7 µs.
int available_cores() {
#ifdef __linux__
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

void run(int threads, const std::function<void(const Team&)>& body) {
  if (threads <= 1) return body({0, 1, nullptr});
  Barrier barrier(threads > available_cores() ? crowded_barrier_spins : barrier_spins);
  run_together(threads, [&](int rank, int size) { body({rank, size, &barrier}); });
}

Slice slice(const Team& team, int64_t B, int64_t min_rows_per_thread) {
  if (min_rows_per_thread > 0 && B >= team.size * min_rows_per_thread)
    return {B * team.rank / team.size, B * (team.rank + 1) / team.size, 0, 1, nullptr};
  return {0, B, team.rank, team.size, team.barrier};
}

}  // namespace lstm_fused
