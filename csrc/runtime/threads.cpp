// Threads of torch's OpenMP pool, a spinning barrier, and fork safety.
#include "runtime/threads.h"

#include <thread>
#include <vector>

#include "thresholds.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

namespace lstm_fused {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#ifdef _OPENMP
// A forked child has none of the pool's threads, but OpenMP would wait for them, in torch's own operators
// too. So the pool is released before a fork, and parent and child each start a new one when they need it.
[[maybe_unused]] const int pool_ends_at_fork =
    pthread_atfork([] { omp_pause_resource_all(omp_pause_soft); }, nullptr, nullptr);
#endif

}  // namespace

void Barrier::wait(int threads) {
  const unsigned generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int n = 0; generation_.load(std::memory_order_acquire) == generation; ++n) {
    if (n < barrier_spins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void run(int threads, const std::function<void(const Team&)>& body) {
  Barrier everyone;
  std::vector<Barrier> groups(static_cast<size_t>(threads));
#ifdef _OPENMP
  if (threads > 1) {
    omp_set_dynamic(0);  // a busy machine would give fewer threads, and so other sums
#pragma omp parallel num_threads(threads)
    body({omp_get_thread_num(), omp_get_num_threads(), &everyone, groups.data()});
    return;
  }
#endif
  body({0, 1, &everyone, groups.data()});
}

Slice slice(const Team& team, int64_t B, int64_t min_rows_per_thread) {
  const bool split_rows = min_rows_per_thread > 0 && B >= team.size * min_rows_per_thread;
  const int groups = split_rows ? team.size : 1;
  const int size = team.size / groups;
  const int group = team.rank / size;
  return {B * group / groups, B * (group + 1) / groups, team.rank % size, size, team.groups + group};
}

}  // namespace lstm_fused
