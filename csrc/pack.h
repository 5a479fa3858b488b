// Weights laid out in the order in which the tile kernel reads them: panels [K, two vectors, together], zero
// past the end.
#pragma once

#include "tile.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// One vector of every k of a panel: lane j of row k is weights[j * lane_stride + k * k_stride].
template <class Number>
inline void pack_lanes(const Number* weights, int64_t lane_stride, int64_t k_stride, int64_t n, int64_t K,
                       Number* to) {
  constexpr int64_t g = together<Number>;
  if (g == 1 && lane_stride == 1) {
    for (int64_t k = 0; k < K; ++k)
      store(to + k * panel<Number>, n > 0 ? load(weights + k * k_stride, n) : Vec<Real<Number>>{});
    return;
  }
  // Rows may lie a page apart: a cache line is read whole or many times.
  constexpr int64_t line = 64 / sizeof(Number);
  const int64_t padded = (K + g - 1) / g * g;
  for (int64_t first = 0; first < padded; first += line)
    for (int64_t j = 0; j < lanes<Number>; ++j)
      for (int64_t k = first; k < first + line && k < padded; ++k)
        to[(k / g * panel<Number> + j) * g + k % g] =
            j < n && k < K ? weights[j * lane_stride + k * k_stride] : Number{};
}

// W [4H, K] into two panels for each vector of channels: i, f and g, o. Vectors [first, last) only.
template <class Number>
void pack_gates(const Number* W, int64_t H, int64_t K, int64_t first, int64_t last, Number* packed) {
  constexpr int64_t g = together<Number>;
  const int64_t apart = (K + g - 1) / g * g * panel<Number>;
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
  const int64_t apart = (K + g - 1) / g * g * panel<Number>;
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
  return {data, ceil_div(K, together<Number>)};
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
