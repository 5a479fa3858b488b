// Runs a function on several threads at the same time: torch's OpenMP pool, or threads of our own without it.
#pragma once

#include <functional>

namespace lstm_fused {

// Calls body(rank, size) for every rank below size at the same time, rank 0 on the calling thread, and
// returns when all are done. size is `threads`, or less where the system refuses to start as many. Calls may
// be concurrent: each has threads to itself. body must not throw.
void run_together(int threads, const std::function<void(int, int)>& body);

}  // namespace lstm_fused
