// Ways to wait for another thread that is about to be done.
#pragma once

#include <thread>

#include "thresholds.h"

namespace lstm_fused {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // "yield" takes no time on most cores
#endif
}

// Polls for `done` at most `polls` times; returns whether it came.
template <class Done>
bool spin(int polls, const Done& done) {
  for (int n = 0; n < polls; ++n) {
    if (done()) return true;
    pause();
  }
  return false;
}

// Spins, then yields: a step is shorter than putting a thread to sleep, but the machine may be shared.
template <class Done>
void spin_then_yield(const Done& done) {
  if (spin(barrier_spins, done)) return;
  while (!done()) std::this_thread::yield();
}

}  // namespace lstm_fused
