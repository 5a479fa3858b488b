// Barriers, and operations of the 32 lanes of a simdgroup.
#pragma once
#include "../runtime.h"
#include "functions.h"

// Of functions that read the runtime's memory, where detectors of races need not look.
#ifdef METAL_SANITIZED
#define UNSEEN __attribute__((noinline, no_sanitize("thread"))) inline
#else
#define UNSEEN inline
#endif
#define HERE int line = __builtin_LINE()

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

inline void threadgroup_barrier(mem_flags flags, HERE) { emulation::threadgroup_barrier(uint(flags), line); }
inline void simdgroup_barrier(mem_flags flags, HERE) { emulation::simdgroup_barrier(uint(flags), line); }

namespace emulation_lanes {

// What a lane published.
template <class T>
UNSEEN T published(const char* slots, uint lane) {
  T value;
  __builtin_memcpy(&value, slots + lane * emulation::SLOT, sizeof value);
  return value;
}

// The values of all lanes.
template <class T>
struct All {
  const char* slots;
  All(T mine, int line) : slots(emulation::exchange(&mine, sizeof mine, line)) {
    static_assert(sizeof(T) <= 16, "too large for an operation of the simdgroup");
  }
  T operator[](uint lane) const { return published<T>(slots, lane); }
};

UNSEEN uint mine() { return emulation::thread().lane; }

template <class T>
inline T from(T x, uint lane, int line) {
  All<T> all(x, line);
  if (lane >= emulation::LANES) emulation::fail("line %d: a shuffle from lane %u", line, lane);
  return all[lane];
}

// Pairwise: Metal leaves the order open.
template <class T, class F>
inline T reduced(T x, int line, F operation) {
  All<T> all(x, line);
  T values[emulation::LANES];
  for (uint i = 0; i < emulation::LANES; i++) values[i] = all[i];
  for (uint n = emulation::LANES / 2; n; n /= 2)
    for (uint i = 0; i < n; i++) values[i] = operation(values[i], values[i + n]);
  return values[0];
}

}  // namespace emulation_lanes

template <class T>
inline T simd_shuffle(T x, ushort lane, HERE) {
  return emulation_lanes::from(x, lane, line);
}
template <class T>
inline T simd_broadcast(T x, ushort lane, HERE) {
  return emulation_lanes::from(x, lane, line);
}
template <class T>
inline T simd_broadcast_first(T x, HERE) {
  return emulation_lanes::from(x, 0, line);
}
template <class T>
inline T simd_shuffle_xor(T x, ushort mask, HERE) {
  return emulation_lanes::from(x, emulation_lanes::mine() ^ mask, line);
}
template <class T>
inline T simd_shuffle_up(T x, ushort n, HERE) {
  return emulation_lanes::from(
      x, emulation_lanes::mine() < n ? emulation_lanes::mine() : emulation_lanes::mine() - n, line);
}
template <class T>
inline T simd_shuffle_down(T x, ushort n, HERE) {
  return emulation_lanes::from(
      x,
      emulation_lanes::mine() + n >= emulation::LANES ? emulation_lanes::mine() : emulation_lanes::mine() + n,
      line);
}
template <class T>
inline T simd_shuffle_rotate_up(T x, ushort n, HERE) {
  return emulation_lanes::from(x, (emulation_lanes::mine() + 32 - n % 32) % 32, line);
}
template <class T>
inline T simd_shuffle_rotate_down(T x, ushort n, HERE) {
  return emulation_lanes::from(x, (emulation_lanes::mine() + n) % 32, line);
}

template <class T>
inline T simd_sum(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return T(a + b); });
}
template <class T>
inline T simd_product(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return T(a * b); });
}
template <class T>
inline T simd_min(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return min(a, b); });
}
template <class T>
inline T simd_max(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return max(a, b); });
}
template <class T>
inline T simd_and(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return T(a & b); });
}
template <class T>
inline T simd_or(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return T(a | b); });
}
template <class T>
inline T simd_xor(T x, HERE) {
  return emulation_lanes::reduced(x, line, [](T a, T b) { return T(a ^ b); });
}
inline bool simd_any(bool x, HERE) { return simd_or(uint(x), line); }
inline bool simd_all(bool x, HERE) { return simd_and(uint(x), line); }
inline bool simd_is_first() { return emulation_lanes::mine() == 0; }
template <class T>
inline T simd_prefix_inclusive_sum(T x, HERE) {
  emulation_lanes::All<T> all(x, line);
  T sum = all[0];
  for (uint i = 1; i <= emulation_lanes::mine(); i++) sum = T(sum + all[i]);
  return sum;
}
template <class T>
inline T simd_prefix_exclusive_sum(T x, HERE) {
  emulation_lanes::All<T> all(x, line);
  T sum = T(0);
  for (uint i = 0; i < emulation_lanes::mine(); i++) sum = T(sum + all[i]);
  return sum;
}

}  // namespace metal
