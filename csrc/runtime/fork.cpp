// Makes OpenMP safe to fork with, for torch's own operators even where the engine itself does without.
#ifdef __linux__
#include <pthread.h>

// Null where no OpenMP of version 5 is loaded. <omp.h> is there only with a compiler's OpenMP turned on.
extern "C" __attribute__((weak)) int omp_pause_resource_all(int kind);

namespace lstm_fused {
namespace {

constexpr int omp_pause_soft = 1;

// A forked child has none of the pool's threads, but OpenMP would wait for them. So the pool is released
// before a fork, and parent and child each start a new one when they need it.
[[maybe_unused]] const int pool_ends_at_fork = pthread_atfork(
    [] {
      if (omp_pause_resource_all) omp_pause_resource_all(omp_pause_soft);
    },
    nullptr, nullptr);

}  // namespace
}  // namespace lstm_fused
#endif
