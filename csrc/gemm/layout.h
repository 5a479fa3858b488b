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

// Terms of the bf16x3 split: three times bfloat16's 8 significant bits are the 24 of float32.
constexpr int64_t bf16x3_terms = 3;

// K rounded up to whole k-groups, or of bfloat16 to whole AMX tiles. Packed weights are zero past K.
template <class scalar_t>
constexpr int64_t padded_k(int64_t K) {
  constexpr int64_t multiple = k_pack<scalar_t> == 1 ? 1 : k_pack<scalar_t> * amx_tile_k_groups;
  return (K + multiple - 1) / multiple * multiple;
}

// Elements of scalar_t that one output channel takes in packed weights.
template <class scalar_t>
constexpr int64_t packed_k(int64_t K, bool bf16x3) {
  constexpr int64_t bf16_per_scalar = sizeof(scalar_t) / sizeof(BFloat16);
  return bf16x3 ? bf16x3_terms * padded_k<BFloat16>(K) / bf16_per_scalar : padded_k<scalar_t>(K);
}

// Leading dimension of operand rows of K elements: an odd number of cache lines, or the rows of a tile, which
// are read at the same time, would fall into the same cache sets.
template <class scalar_t>
constexpr int64_t row_stride(int64_t K) {
  constexpr int64_t line = 64 / sizeof(scalar_t);
  return ((K + line - 1) / line | 1) * line;
}

// Operand rows that a step writes and the next one reads, a ring buffer of steps: [slots, B, stride()], zero
// past K. Two slots, a double buffer, unless the input GEMM is hoisted; always a power of two. With bf16x3 a
// row of float32 is bf16x3_terms rows of bfloat16, one after the other.
template <class scalar_t>
struct OperandBuffer {
  scalar_t* data;
  int64_t B, K, slots = 2;
  bool bf16x3 = false;

  int64_t stride() const {
    constexpr int64_t bf16_per_scalar = sizeof(scalar_t) / sizeof(BFloat16);
    return bf16x3 ? bf16x3_terms * row_stride<BFloat16>(K) / bf16_per_scalar : row_stride<scalar_t>(K);
  }
  int64_t size() const { return slots * B * stride(); }
  scalar_t* row(int64_t step, int64_t b) const { return data + ((step & (slots - 1)) * B + b) * stride(); }
};

// Elements of packed weights, in panels of NR output channels, two vectors, by K.
template <class scalar_t>
struct Packing {
  int64_t lanes;  // of one vector

  // W [4H, K]: each vector of channels has two panels, i and f, g and o.
  int64_t gates(int64_t H, int64_t K, bool bf16x3 = false) const {
    return (H + lanes - 1) / lanes * 4 * lanes * packed_k<scalar_t>(K, bf16x3);
  }
  // N output channels in their order.
  int64_t channels(int64_t N, int64_t K, bool bf16x3 = false) const {
    return (N + 2 * lanes - 1) / (2 * lanes) * 2 * lanes * packed_k<scalar_t>(K, bf16x3);
  }
};

}  // namespace lstm_fused
