// Splits float32 into three bfloat16 terms (bf16x3), the form in which AMX multiplies it.
#pragma once

#include <limits>

#include "gemm/layout.h"
#include "isa/simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// v = term[0] + term[1] + term[2]. Terms are truncated, not rounded, so that all have the sign of v, and only
// those of zero are zero: infinity times the terms then adds up to what infinity times v is.
struct Bf16x3 {
  Vec<float> term[bf16x3_terms];  // the low 16 bits are zero

  explicit Bf16x3(Vec<float> v) {
    const Vec<float> sign = broadcast(-0.f), smallest = broadcast(std::numeric_limits<float>::min());
    const Vec<float> nearly_zero = (Vec<float>)(((Bits)v & (Bits)sign) | (Bits)smallest);
    const Vec<float> if_exact = v == Vec<float>{} ? v : nearly_zero;
    for (Vec<float>& t : term) {
      t = (Vec<float>)((Bits)v & 0xffff0000u);
      v = v == t ? if_exact : v - t;  // infinity is exact; NaN stays NaN
    }
  }
};

// Stores columns [j, j + n) of a row of the buffer, at most one vector.
template <class scalar_t>
[[gnu::always_inline]] inline void store_operand(const OperandBuffer<scalar_t>& buffer, scalar_t* row,
                                                 int64_t j, Vec<scalar_t> v, int64_t n) {
  if constexpr (has_amx && std::is_same_v<scalar_t, float>)
    if (buffer.bf16x3) {
      const Bf16x3 split(v);
      BFloat16* to = reinterpret_cast<BFloat16*>(row) + j;
      for (const Vec<float>& term : split.term) store(to, term, n), to += row_stride<BFloat16>(buffer.K);
      return;
    }
  store(row + j, v, n);
}

// Sets the padding of a row, columns K to the end, to zero: it is multiplied too.
template <class scalar_t>
inline void clear_padding(const OperandBuffer<scalar_t>& buffer, int64_t step, int64_t b) {
  const auto clear = [&](auto* row, int64_t stride) {
    for (int64_t j = buffer.K; j < stride; ++j) row[j] = {};
  };
  scalar_t* row = buffer.row(step, b);
  if (!buffer.bf16x3) return clear(row, row_stride<scalar_t>(buffer.K));
  const int64_t term_stride = row_stride<BFloat16>(buffer.K);
  for (int64_t t = 0; t < bf16x3_terms; ++t)
    clear(reinterpret_cast<BFloat16*>(row) + t * term_stride, term_stride);
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
