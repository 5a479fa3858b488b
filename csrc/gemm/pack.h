// Weights laid out in the order in which the tile kernel reads them: panels [K, two vectors, together], zero
// past the end.
#pragma once

#include "gemm/macrokernel.h"
#include "gemm/bf16x3.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// As many k as there are lanes: lane j of number k is weights[j * lane_stride + k * k_stride], of which one
// stride is 1; zero in lanes past n and k past K.
template <class Real>
struct Block {
  Vec<Real> of[lanes<Real>];

  Block(const Real* weights, int64_t lane_stride, int64_t k_stride, int64_t n, int64_t K) {
    constexpr int64_t L = lanes<Real>;
    if (lane_stride == 1) {
      for (int64_t k = 0; k < L; ++k) of[k] = k < K && n > 0 ? load(weights + k * k_stride, n) : Vec<Real>{};
    } else {
      for (int64_t j = 0; j < L; ++j)
        of[j] = j < n && K > 0 ? load(weights + j * lane_stride, K) : Vec<Real>{};
      transpose<Real>(of);
    }
  }
};

// One vector of every unit of a panel.
template <class Real>
inline void pack_lanes(const Real* weights, int64_t lane_stride, int64_t k_stride, int64_t n, int64_t K,
                       Real* to) {
  for (int64_t first = 0; first < K; first += lanes<Real>) {
    const Block<Real> block(weights + first * k_stride, lane_stride, k_stride, n, K - first);
    for (int64_t k = first; k < min(first + lanes<Real>, K); ++k)
      store(to + k * panel<Real>, block.of[k - first]);
  }
}

// The same of bfloat16: a pair of them moves as one float does.
inline void pack_lanes(const BFloat16* weights, int64_t lane_stride, int64_t k_stride, int64_t n, int64_t K,
                       BFloat16* to) {
  constexpr int64_t L = lanes<BFloat16>, unit = 2 * panel<BFloat16>;
  const int64_t units = padded<BFloat16>(K) / 2;
  if (lane_stride == 1 && n >= L) {
    for (int64_t u = 0; u < units; ++u)
      store_unit(to + u * unit, weights + 2 * u * k_stride, k_stride, K - 2 * u);
    return;
  }
  for (int64_t first = 0; first < units; first += L) {
    if (n >= L && K - 2 * first >= 2 * L && k_stride == 1) {
      Vec<float> block[L];
      for (int64_t j = 0; j < L; ++j)
        __builtin_memcpy(block + j, weights + j * lane_stride + 2 * first, sizeof *block);
      transpose<float>(block);
      for (int64_t u = 0; u < L; ++u) __builtin_memcpy(to + (first + u) * unit, block + u, sizeof *block);
      continue;
    }
    for (int64_t j = 0; j < L; ++j)
      for (int64_t u = first; u < min(first + L, units); ++u)
        for (int64_t k = 2 * u; k < 2 * u + 2; ++k)
          to[u * unit + 2 * j + k % 2] =
              j < n && k < K ? weights[j * lane_stride + k * k_stride] : BFloat16{};
  }
}

// The same of floats in parts: [matrices, parts, units of a matrix, two vectors, 2].
inline void pack_lanes_in_parts(const float* weights, int64_t lane_stride, int64_t k_stride, int64_t n,
                                int64_t K, BFloat16* to) {
  constexpr int64_t L = lanes<float>, unit = 2 * panel<BFloat16>, part = matrix_units * unit;
  for (int64_t first = 0; first < padded<BFloat16>(K); first += L) {
    const Block<float> block(weights + first * k_stride, lane_stride, k_stride, n, K - first);
    for (int64_t k = 0; k < L; k += 2) {
      const Parts low(block.of[k]), high(block.of[k + 1]);
      const int64_t u = (first + k) / 2;
      BFloat16* at = to + u / matrix_units * float_parts * part + u % matrix_units * unit;
      for (int64_t p = 0; p < float_parts; ++p) {
        const Bits both = (Bits)low.part[p] >> 16 | (Bits)high.part[p];
        __builtin_memcpy(at + p * part, &both, sizeof both);
      }
    }
  }
}

// One of the two vectors of a panel, in either form.
template <class Number>
inline void pack_panel_vector(const Number* weights, int64_t lane_stride, int64_t k_stride, int64_t n,
                              int64_t K, bool in_parts, int64_t vector, Number* panel_begin) {
  if constexpr (has_matrix_unit && std::is_same_v<Number, float>)
    if (in_parts)
      return pack_lanes_in_parts(weights, lane_stride, k_stride, n, K,
                                 reinterpret_cast<BFloat16*>(panel_begin) + vector * 2 * lanes<float>);
  pack_lanes(weights, lane_stride, k_stride, n, K, panel_begin + vector * lanes<Number> * together<Number>);
}

// W [4H, K] into two panels for each vector of channels: i, f and g, o. Vectors [first, last) only.
template <class Number>
void pack_gates(const Number* W, int64_t H, int64_t K, bool in_parts, int64_t first, int64_t last,
                Number* packed) {
  const int64_t apart = depth<Number>(K, in_parts) * panel<Number>;
  for (int64_t n = first; n < last; ++n)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t j = n * lanes<Number>;
      pack_panel_vector(W + (gate * H + j) * K, K, 1, H - j, K, in_parts, gate % 2,
                        packed + (gate_panels * n + gate / 2) * apart);
    }
}

// W, whose output n meets input k at n * n_stride + k * k_stride, into panels [first, last).
template <class Number>
void pack_channels(const Number* W, int64_t n_stride, int64_t k_stride, int64_t N, int64_t K, bool in_parts,
                   int64_t first, int64_t last, Number* packed) {
  const int64_t apart = depth<Number>(K, in_parts) * panel<Number>;
  for (int64_t p = first; p < last; ++p)
    for (int64_t v = 0; v < 2; ++v) {
      const int64_t j = p * panel<Number> + v * lanes<Number>;
      pack_panel_vector(W + j * n_stride, n_stride, k_stride, N - j, K, in_parts, v, packed + p * apart);
    }
}

// Packed weights that meet rows of a relay, in the form that these have.
template <class Number>
Packed<Number> packed(const Number* data, const Relay<Number>& relay) {
  return {data, ceil_div(relay.N, together<Number>), depth<Number>(relay.N, relay.in_parts) * panel<Number>,
          relay.in_parts};
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
