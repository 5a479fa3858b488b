// Weights laid out in the order in which the tile kernel reads them: panels [K, two vectors], zero past the
// end.
#pragma once

#include "tile.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// One vector of every k of a panel: lane j of row k is weights[j * lane_stride + k * k_stride].
template <class Real>
inline void pack_lanes(const Real* weights, int64_t lane_stride, int64_t k_stride, int64_t n, int64_t K,
                       Real* to) {
  if (lane_stride == 1) {
    for (int64_t k = 0; k < K; ++k)
      store(to + k * panel<Real>, n > 0 ? load(weights + k * k_stride, n) : Vec<Real>{});
    return;
  }
  constexpr int64_t line =
      64 / sizeof(Real);  // rows may lie a page apart: a cache line is read whole or twice
  for (int64_t first = 0; first < K; first += line)
    for (int64_t j = 0; j < lanes<Real>; ++j)
      for (int64_t k = first; k < first + line && k < K; ++k)
        to[k * panel<Real> + j] = j < n ? weights[j * lane_stride + k * k_stride] : Real(0);
}

// W [4H, K] into two panels for each vector of channels: i, f and g, o. Vectors [first, last) only.
template <class Real>
void pack_gates(const Real* W, int64_t H, int64_t K, int64_t first, int64_t last, Real* packed) {
  for (int64_t n = first; n < last; ++n)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t j = n * lanes<Real>;
      Real* to = packed + (gate_panels * n + gate / 2) * K * panel<Real> + (gate % 2) * lanes<Real>;
      pack_lanes(W + (gate * H + j) * K, K, 1, H - j, K, to);
    }
}

// W, whose output n meets input k at n * n_stride + k * k_stride, into panels [first, last).
template <class Real>
void pack_channels(const Real* W, int64_t n_stride, int64_t k_stride, int64_t N, int64_t K, int64_t first,
                   int64_t last, Real* packed) {
  for (int64_t p = first; p < last; ++p)
    for (int64_t v = 0; v < 2; ++v) {
      const int64_t j = p * panel<Real> + v * lanes<Real>;
      pack_lanes(W + j * n_stride, n_stride, k_stride, N - j, K,
                 packed + p * K * panel<Real> + v * lanes<Real>);
    }
}

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace lstm_fused::LSTM_FUSED_ISA
