// Floats as sums of three bfloat16, which is how a matrix unit multiplies them.
//
// Parts are cut off, not rounded, so that all have their float's sign, and none but those of zero is zero:
// where a factor is infinite, so are its products with all parts, and their sum is what the float's would be.
#pragma once

#include <limits>

#include "isa/simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// A vector's parts.
struct Parts {
  Vec<float> part[float_parts];  // each of them a bfloat16

  explicit Parts(Vec<float> v) {
    const Vec<float> sign = broadcast(-0.f), least = broadcast(std::numeric_limits<float>::min());
    const Vec<float> nearly_zero = (Vec<float>)(((Bits)v & (Bits)sign) | (Bits)least);
    const Vec<float> none = v == Vec<float>{} ? v : nearly_zero;
    for (Vec<float>& p : part) {
      p = (Vec<float>)((Bits)v & 0xffff0000u);
      v = v == p ? none : v - p;  // of infinity none is left, of NaN a NaN
    }
  }
};

// Channels j .. j + n of a row of the relay.
template <class Number>
[[gnu::always_inline]] inline void hand_on(const Relay<Number>& relay, Number* row, int64_t j,
                                           Vec<Real<Number>> v, int64_t n) {
  if constexpr (has_matrix_unit && std::is_same_v<Number, float>)
    if (relay.in_parts) {
      const Parts parts(v);
      BFloat16* to = reinterpret_cast<BFloat16*>(row) + j;
      for (const Vec<float>& part : parts.part) store(to, part, n), to += row_stride<BFloat16>(relay.N);
      return;
    }
  store(row + j, v, n);
}

// Zeros from channel N to the end of the row, which are multiplied too.
template <class Number>
inline void clear_past_end(const Relay<Number>& relay, int64_t step, int64_t b) {
  const auto clear = [&](auto* row, int64_t stride) {
    for (int64_t j = relay.N; j < stride; ++j) row[j] = {};
  };
  Number* row = relay.at(step, b);
  if (!relay.in_parts) return clear(row, row_stride<Number>(relay.N));
  const int64_t apart = row_stride<BFloat16>(relay.N);
  for (int64_t p = 0; p < float_parts; ++p) clear(reinterpret_cast<BFloat16*>(row) + p * apart, apart);
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
