// Ways to wait for another thread that is about to be done.
#pragma once

#include <thread>

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

template <class Done>
void yield_until(const Done& done) {
  while (!done()) std::this_thread::yield();
}

}  // namespace lstm_fused
