#include "runtime/threads.h"

#ifdef __unix__
#include <unistd.h>
#endif

#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

namespace lstm_fused {
namespace {

// About 20 µs: longer than any step's imbalance, short beside a scheduler's time slice.
constexpr int spins = 1000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#ifdef _OPENMP
// A forked child has none of the pool's threads, but OpenMP would wait for them, in torch's own products too.
// So whoever forks puts its pool away first, and parent and child each make a new one when they need it.
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
    if (n < spins) {
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
    omp_set_dynamic(0);  // or a busy machine gives fewer threads, and with them other sums
#pragma omp parallel num_threads(threads)
    body({omp_get_thread_num(), omp_get_num_threads(), &everyone, groups.data()});
    return;
  }
#endif
  body({0, 1, &everyone, groups.data()});
}

int64_t near_bytes() {
  static const int64_t bytes = [] {
    int64_t cache = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return (cache > 0 ? cache : 1 << 20) / 4 * 3;
  }();
  return bytes;
}

Slice slice(const Team& team, int64_t B, int64_t weight_bytes, int64_t tile_rows) {
  const bool split_rows = weight_bytes <= near_bytes() && B >= team.size * tile_rows;
  const int groups = split_rows ? team.size : 1;
  const int parts = team.size / groups;
  const int group = team.rank / parts;
  return {B * group / groups, B * (group + 1) / groups, team.rank % parts, parts, team.groups + group};
}

}  // namespace lstm_fused
