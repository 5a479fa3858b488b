// Threads of the OpenMP pool that torch has loaded.
#ifdef _OPENMP
#include <omp.h>

#include "runtime/pool.h"

namespace lstm_fused {

void run_together(int threads, const std::function<void(int, int)>& body) {
  omp_set_dynamic(0);  // a busy machine would give fewer threads, and so other sums
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace lstm_fused
#endif
