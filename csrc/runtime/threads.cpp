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

Slice slice(const Team& team, int64_t B, int64_t min_rows_per_thread, const int64_t* lengths) {
  if (min_rows_per_thread <= 0 || B < team.size * min_rows_per_thread)
    return {0, B, team.rank, team.size, team.barrier};
  int64_t steps = B;  // one more for each row, whose state takes time without a step, too
  for (int64_t b = 0; lengths && b < B; ++b) steps += lengths[b];
  const auto first_row = [&](int64_t rank) {
    if (!lengths) return B * rank / team.size;
    int64_t b = 0;
    for (int64_t before = 0; before * team.size < steps * rank; ++b) before += lengths[b] + 1;
    return b;
  };
  return {first_row(team.rank), first_row(team.rank + 1), 0, 1, nullptr};
}

}  // namespace lstm_fused
