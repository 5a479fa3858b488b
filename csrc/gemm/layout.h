// Lays out the operands of the GEMM: k-groups, sizes of packed weights, buffers of operand rows.
//
// The GEMM adds A[rows, K] B[K, channels] to accumulators: A holds a row for each sequence of the batch (x_t,
// h_{t-1} or da_{t+1}), B the weights.
#pragma once

#include <cstdint>

#include "isa/dtypes.h"
#include "thresholds.h"

namespace lstm_fused {

// Consecutive k that lie side by side in packed weights and operand rows, a k-group: 1, or of bfloat16 a VNNI
// pair.
template <class scalar_t>
constexpr int64_t k_pack = sizeof(acc_t<scalar_t>) / sizeof(scalar_t);

// Elements of a cache line.
template <class scalar_t>
constexpr int64_t line_elements = 64 / static_cast<int64_t>(sizeof(scalar_t));

// K rounded up to whole k-groups, or of bfloat16 to whole AMX tiles. Packed weights are zero past K.
template <class scalar_t>
constexpr int64_t padded_k(int64_t K) {
  constexpr int64_t multiple = k_pack<scalar_t> == 1 ? 1 : k_pack<scalar_t> * amx_tile_k_groups;
  return (K + multiple - 1) / multiple * multiple;
}

// Leading dimension of operand rows of K elements: an odd number of cache lines, or the rows of a tile, which
// are read at the same time, would fall into the same cache sets.
template <class scalar_t>
constexpr int64_t row_stride(int64_t K) {
  constexpr int64_t line = 64 / sizeof(scalar_t);
  return ((K + line - 1) / line | 1) * line;
}

// Operand rows that a step writes and the next one reads, a ring buffer of steps: [slots, B, stride()], zero
// past K. Two slots, a double buffer, unless the input GEMM is hoisted or the products of several steps are
// formed at once; a power of two. Where all steps are kept, there is memory for those alone.
template <class scalar_t>
struct OperandBuffer {
  scalar_t* data;
  int64_t B, K, slots = 2;

  int64_t stride() const { return row_stride<scalar_t>(K); }
  int64_t size() const { return slots * B * stride(); }
  scalar_t* row(int64_t step, int64_t b) const { return data + ((step & (slots - 1)) * B + b) * stride(); }
  // Rows [begin, end) alone, those of all steps side by side.
  OperandBuffer part(int64_t begin, int64_t end) const {
    return {data + begin * (slots - 1) * stride(), end - begin, K, slots};
  }
  // Sets columns K to the end of a row to zero: they are multiplied too.
  void clear_padding(int64_t step, int64_t b) const {
    for (int64_t j = K; j < stride(); ++j) row(step, b)[j] = {};
  }
};

// Elements of packed weights, in panels of NR output channels, two vectors, by K.
template <class scalar_t>
struct Packing {
  int64_t lanes;  // of one vector

  // W [4H, K]: each vector of channels has two panels, i and f, g and o.
  int64_t gates(int64_t H, int64_t K) const {
    return (H + lanes - 1) / lanes * 4 * lanes * padded_k<scalar_t>(K);
  }
  // N output channels in their order.
  int64_t channels(int64_t N, int64_t K) const {
    return (N + 2 * lanes - 1) / (2 * lanes) * 2 * lanes * padded_k<scalar_t>(K);
  }
};

}  // namespace lstm_fused
