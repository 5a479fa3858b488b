// Vectorised sigmoid and tanh, correct for infinities and NaN.
//
// Errors are below 2 ulp over all of float and double. For bfloat16 they are computed in float with errors
// below 2^-20, far below the rounding of the result.
#pragma once

#include <limits>

#include "isa/simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// e^y = 2^n e^r, n = round(y / ln 2), |r| <= ln 2 / 2, and e^r - 1 = r + r^2 p(r).
// ln 2 is split so that n times its high part is exact; p is a Chebyshev fit of (e^r - 1 - r) / r^2.
template <class scalar_t>
struct Exp;

template <>
struct Exp<float> {
  static constexpr float log2e = 1.4426950408889634f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.1219444005469058e-4f;
  static constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float smallest = -105.f;  // e^smallest rounds to 0
  static constexpr float negligible =
      40.f;  // 1 + e^-negligible rounds to 1, and 2^-64 e^-negligible is normal
  static constexpr float saturated = 20.f;  // tanh(saturated / 2) rounds to 1
  static constexpr float p[] = {1.989108046399884e-4f, 1.393373071579208e-3f, 8.333310844647863e-3f,
                                4.166646419740569e-2f, 1.666666668170422e-1f, 5.000000013538730e-1f};
};

template <>
struct Exp<BFloat16> : Exp<float> {
  static constexpr float p[] = {8.312504e-3f, 4.189033e-2f, 1.6667116e-1f, 4.999923e-1f};  // 2^-23
};

template <>
struct Exp<double> {
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0.6931467056274414, ln2_low = 4.7493250390316726e-7;
  static constexpr double magic = 6755399441055744.;  // 1.5 * 2^52
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double smallest = -746.;
  static constexpr double negligible = 40.;
  static constexpr double saturated = 40.;
  static constexpr double p[] = {2.091475532589320e-9,
                                 2.510531272962210e-8,
                                 2.755727347871858e-7,
                                 2.755725517000089e-6,
                                 2.480158732567746e-5,
                                 1.984126987500228e-4,
                                 1.388888888888371e-3,
                                 8.33333333332608312e-3,
                                 4.166666666666666978e-2,
                                 1.666666666666667103e-1,
                                 0.5};
};

// Whether results are stored with fewer bits than they are computed with.
template <class scalar_t>
constexpr bool is_rounded = sizeof(scalar_t) < sizeof(acc_t<scalar_t>);

// e^y = scale (1 + q), where scale is 2^(n + offset) and q has full relative accuracy near 0.
template <class scalar_t>
struct SplitExp {
  using R = acc_t<scalar_t>;
  using E = Exp<scalar_t>;
  Vec<R> scale, q;

  SplitExp(Vec<R> y, int offset) {
    const Vec<R> shifted = y * E::log2e + E::magic;
    const Vec<R> n = shifted - E::magic;
    const Vec<R> r = (y - n * E::ln2_high) - n * E::ln2_low;
    Vec<R> p = broadcast(E::p[0]);
    for (int k = 1; k < static_cast<int>(sizeof(E::p) / sizeof(R)); ++k) p = p * r + E::p[k];
    // Float needs no correction for the rounding of r: tested for all floats.
    const Vec<R> lost = sizeof(R) == 4 ? Vec<R>{} : (y - n * E::ln2_high - r) - n * E::ln2_low;
    q = sizeof(R) == 4 ? r * (r * p) + r : r + (r * (r * p) + lost);  // r * r may be subnormal
    scale = (Vec<R>)(((Int<R>)shifted + (E::exponent_bias + offset)) << E::mantissa_bits);
  }
};

template <class R>
inline Vec<R> abs(Vec<R> x) {
  const Vec<R> sign = broadcast(-R(0));
  return (Vec<R>)((Int<R>)x & ~(Int<R>)sign);
}

// Subnormal numbers become zero: computing with them may take a hundred times as long.
template <class R>
inline Vec<R> without_subnormals(Vec<R> x) {
  const Vec<R> smallest = broadcast(std::numeric_limits<R>::min());
  return abs<R>(x) < smallest ? Vec<R>{} : x;  // NaN stays
}

// s = 1 / d, with d = 1 + e^-x in units of 2^64: neither e^-x nor s then leaves the range of normal numbers
// before the division.
template <class scalar_t>
inline Vec<scalar_t> sigmoid(Vec<scalar_t> x) {
  using R = acc_t<scalar_t>;
  using E = Exp<scalar_t>;
  const Vec<R> one = broadcast(R(0x1p-64));
  const SplitExp<scalar_t> exp(-at_most<R>(at_least<R>(x, E::smallest), E::negligible), -64);
  // Two additions: of 1 + scale and scale * q, the first would be rounded where scale is large.
  return one / (exp.scale * exp.q + one + exp.scale);
}

// t = h / (1 + h), with h = (e^2|x| - 1) / 2. For small h, t = h - h t halves the error of the sum and of the
// quotient, which bfloat16 does not need.
template <class scalar_t>
inline Vec<scalar_t> tanh(Vec<scalar_t> x) {
  using R = acc_t<scalar_t>;
  const Vec<R> half = broadcast(R(0.5)), sign = broadcast(-R(0));
  const SplitExp<scalar_t> exp(at_most<R>(2 * abs<R>(x), Exp<scalar_t>::saturated), -1);
  const Vec<R> h = exp.scale * exp.q + (exp.scale - half);
  Vec<R> t = h / (1 + h);
  if constexpr (!is_rounded<scalar_t>) t = h < half ? h - h * t : t;
  return (Vec<R>)((Int<R>)t | ((Int<R>)x & (Int<R>)sign));
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
