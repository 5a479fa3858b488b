// Vectorised sigmoid and tanh, within 2 ulp everywhere, right at infinities and NaN.
#pragma once

#include <limits>

#include "simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// e^y = 2^n e^r, n = round(y / ln 2), |r| <= ln 2 / 2, and e^r - 1 = r + r^2 p(r).
// ln 2 is split so that n times its high part is exact; p fits (e^r - 1 - r) / r^2, in float so that the
// largest error of e^r is least, 2^-28, in double through Chebyshev's points.
template <class Real>
struct Exp;

template <>
struct Exp<float> {
  static constexpr float log2e = 1.4426950408889634f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.1219444005469058e-4f;
  static constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float smallest = -105.f;  // e^smallest rounds to 0
  static constexpr float saturated = 20.f;   // tanh(saturated / 2) rounds to 1
  static constexpr float p[] = {1.3863755e-3f, 8.367509e-3f, 4.1667238e-2f, 1.6666535e-1f, 0.5f};
};

template <>
struct Exp<double> {
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0.6931467056274414, ln2_low = 4.7493250390316726e-7;
  static constexpr double magic = 6755399441055744.;  // 1.5 * 2^52
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double smallest = -746.;
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

// e^y = scale (1 + q), where scale is 2^(n + offset) and q has full relative accuracy near 0.
template <class Real>
inline void split_exp(Vec<Real> y, int offset, Vec<Real>& scale, Vec<Real>& q) {
  using E = Exp<Real>;
  const Vec<Real> shifted = y * E::log2e + E::magic;
  const Vec<Real> n = shifted - E::magic;
  const Vec<Real> r = (y - n * E::ln2_high) - n * E::ln2_low;
  Vec<Real> p = broadcast(E::p[0]);
  for (int k = 1; k < static_cast<int>(sizeof(E::p) / sizeof(Real)); ++k) p = p * r + E::p[k];
  q = r * (r * p) + r;  // r * r may be subnormal
  scale = (Vec<Real>)(((Int<Real>)shifted + (E::exponent_bias + offset)) << E::mantissa_bits);
}

template <class Real>
inline Vec<Real> abs(Vec<Real> x) {
  const Vec<Real> sign = broadcast(-Real(0));
  return (Vec<Real>)((Int<Real>)x & ~(Int<Real>)sign);
}

// Zero for what would take a hundred times as long to compute with.
template <class Real>
inline Vec<Real> without_subnormals(Vec<Real> x) {
  const Vec<Real> smallest = broadcast(std::numeric_limits<Real>::min());
  return abs<Real>(x) < smallest ? Vec<Real>{} : x;  // NaN stays
}

// s = e / d or 1 / d, with d = 1 + e and e = e^-|x|, which cannot overflow. What rounding d lost is given
// back to s, whose change for a small change of d is -s / d; the same in tanh.
template <class Real>
inline Vec<Real> sigmoid(Vec<Real> x) {
  const Vec<Real> smallest = broadcast(Exp<Real>::smallest), one = broadcast(Real(1));
  Vec<Real> y = -abs<Real>(x);
  y = y < smallest ? smallest : y;  // NaN stays
  Vec<Real> scale, q;
  split_exp<Real>(y, 64, scale, q);  // so that a subnormal e comes from a normal scale
  const Vec<Real> e = (scale + scale * q) * Real(0x1p-64);
  const Vec<Real> d = 1 + e, lost = e - (d - 1);
  const Vec<Real> s = (x < 0 ? e : one) / d;
  return s - s * (lost * (x < 0 ? 1 - s : s));
}

// t = u / (u + 2) with u = e^2|x| - 1. Beyond u = 2 what was lost no longer matters, nor would 1 - t tell it.
template <class Real>
inline Vec<Real> tanh(Vec<Real> x) {
  const Vec<Real> saturated = broadcast(Exp<Real>::saturated);
  Vec<Real> y = abs<Real>(x) * 2;
  y = y > saturated ? saturated : y;  // NaN stays
  Vec<Real> scale, q;
  split_exp<Real>(y, 0, scale, q);
  const Vec<Real> u = scale * q + (scale - 1);
  const Vec<Real> d = 2 + u, lost = u < 2 ? u - (d - 2) : Vec<Real>{};
  Vec<Real> t = u / d;
  t -= t * (lost * (Real(0.5) - Real(0.5) * t));
  const Vec<Real> sign = broadcast(-Real(0));
  return (Vec<Real>)((Int<Real>)t | ((Int<Real>)x & (Int<Real>)sign));
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
