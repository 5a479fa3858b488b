// Weights laid out in the order in which the tile kernel reads them: panels [K, two vectors, together], zero
// past the end.
#pragma once

#include "tile.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// One unit of one lane: the numbers from k on that lie together, zero past K.
template <class Number>
inline void pack_unit(const Number* weights, int64_t k_stride, int64_t left, Number* to) {
  constexpr int64_t g = together<Number>;
  if (k_stride == 1 && left >= g) {
    __builtin_memcpy(to, weights, sizeof(Number) * g);
  } else {
    for (int64_t k = 0; k < g; ++k) to[k] = k < left ? weights[k * k_stride] : Number{};
  }
}

// One vector of every unit of a panel: lane j of number k is weights[j * lane_stride + k * k_stride].
template <class Number>
inline void pack_lanes(const Number* weights, int64_t lane_stride, int64_t k_stride, int64_t n, int64_t K,
                       Number* to) {
  constexpr int64_t g = together<Number>;
  const int64_t units = padded<Number>(K) / g;
  if (lane_stride == 1 && n >= lanes<Number>) {
    for (int64_t u = 0; u < units; ++u)
      store_unit(to + u * panel<Number> * g, weights + u * g * k_stride, k_stride, K - u * g);
    return;
  }
  // Rows may lie a page apart: a cache line is read whole or many times.
  constexpr int64_t line = 64 / sizeof(Number) / g;
  for (int64_t first = 0; first < units; first += line)
    for (int64_t j = 0; j < lanes<Number>; ++j)
      for (int64_t u = first; u < first + line && u < units; ++u)
        pack_unit(weights + j * lane_stride + u * g * k_stride, k_stride, j < n ? K - u * g : 0,
                  to + (u * panel<Number> + j) * g);
}

// W [4H, K] into two panels for each vector of channels: i, f and g, o. Vectors [first, last) only.
template <class Number>
void pack_gates(const Number* W, int64_t H, int64_t K, int64_t first, int64_t last, Number* packed) {
  constexpr int64_t g = together<Number>;
  const int64_t apart = padded<Number>(K) * panel<Number>;
  for (int64_t n = first; n < last; ++n)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t j = n * lanes<Number>;
      Number* to = packed + (gate_panels * n + gate / 2) * apart + (gate % 2) * lanes<Number> * g;
      pack_lanes(W + (gate * H + j) * K, K, 1, H - j, K, to);
    }
}

// W, whose output n meets input k at n * n_stride + k * k_stride, into panels [first, last).
template <class Number>
void pack_channels(const Number* W, int64_t n_stride, int64_t k_stride, int64_t N, int64_t K, int64_t first,
                   int64_t last, Number* packed) {
  constexpr int64_t g = together<Number>;
  const int64_t apart = padded<Number>(K) * panel<Number>;
  for (int64_t p = first; p < last; ++p)
    for (int64_t v = 0; v < 2; ++v) {
      const int64_t j = p * panel<Number> + v * lanes<Number>;
      pack_lanes(W + j * n_stride, n_stride, k_stride, N - j, K, packed + p * apart + v * lanes<Number> * g);
    }
}

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Packed weights of an inner dimension of K numbers.
template <class Number>
Packed<Number> packed(const Number* data, int64_t K) {
  return {data, ceil_div(K, together<Number>), padded<Number>(K) * panel<Number>};
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
