// The numbers that tensors hold, and those that the engine computes with.
#pragma once

#include <cstdint>

namespace lstm_fused {

struct BFloat16 {
  uint16_t bits;
};

template <class Number>
struct Computed {
  using Type = Number;
};

template <>
struct Computed<BFloat16> {
  using Type = float;
};

template <class Number>
using Real = typename Computed<Number>::Type;

// Numbers that lie side by side in the inner dimension of packed weights and of the rows they meet.
template <class Number>
constexpr int64_t together = sizeof(Real<Number>) / sizeof(Number);

// Units that a matrix unit takes at a time.
constexpr int64_t matrix_units = 16;

// The inner dimension of packed weights, which are zero past K: whole units, of bfloat16 whole matrices.
template <class Number>
constexpr int64_t padded(int64_t K) {
  constexpr int64_t whole = together<Number> == 1 ? 1 : together<Number> * matrix_units;
  return (K + whole - 1) / whole * whole;
}

// Parts of a float to a matrix unit of bfloat16: bfloat16's own 8 bits, three times, are all 24.
constexpr int64_t float_parts = 3;

// Numbers of packed weights for each output, by their inner dimension.
template <class Number>
constexpr int64_t depth(int64_t K, bool in_parts) {
  constexpr int64_t in_number = sizeof(Number) / sizeof(BFloat16);
  return in_parts ? float_parts * padded<BFloat16>(K) / in_number : padded<Number>(K);
}

// Numbers from one row of factors to the next: an odd count of cache lines, so that the rows of a tile, which
// are read side by side, do not all fall on the same places of the cache.
template <class Number>
constexpr int64_t row_stride(int64_t n) {
  constexpr int64_t line = 64 / sizeof(Number);
  return ((n + line - 1) / line | 1) * line;
}

}  // namespace lstm_fused
