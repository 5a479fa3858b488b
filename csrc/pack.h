// Weights laid out in the order in which the tile kernel reads them: panels [K, two vectors, together], zero
// past the end.
#pragma once

#include "column.h"
#include "parts.h"

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

// The same in parts: [matrices, parts, units of a matrix, two vectors, 2].
inline void pack_lanes_in_parts(const float* weights, int64_t lane_stride, int64_t k_stride, int64_t n,
                                int64_t K, BFloat16* to) {
  constexpr int64_t unit = part_unit / float_parts, part = matrix_units * unit;
  const auto at = [&](int64_t u) {
    return to + u / matrix_units * float_parts * part + u % matrix_units * unit;
  };
  const int64_t units = padded<BFloat16>(K) / 2;
  if (lane_stride == 1) {
    const auto of = [&](int64_t k) {
      return Parts(k < K && n > 0 ? load(weights + k * k_stride, n) : Vec<float>{});
    };
    for (int64_t u = 0; u < units; ++u) {
      const Parts low = of(2 * u), high = of(2 * u + 1);
      for (int64_t p = 0; p < float_parts; ++p) {
        const Bits both = (Bits)low.part[p] >> 16 | (Bits)high.part[p];
        __builtin_memcpy(at(u) + p * part, &both, sizeof both);
      }
    }
    return;
  }
  for (int64_t k = 0; k < 2 * units; k += lanes<float>)
    for (int64_t j = 0; j < lanes<float>; ++j) {
      const bool in = j < n && k < K;
      const Parts parts(in ? load(weights + j * lane_stride + k, K - k) : Vec<float>{});
      for (int64_t p = 0; p < float_parts; ++p) {
        const Stored<BFloat16>::Type pairs = Stored<BFloat16>::narrow(parts.part[p]);
        for (int64_t u = 0; u < lanes<float> / 2; ++u)
          __builtin_memcpy(at(k / 2 + u) + p * part + 2 * j, reinterpret_cast<const char*>(&pairs) + 4 * u,
                           4);
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
