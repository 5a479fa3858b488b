// Vectors by the compiler's own extension, so that one source serves every instruction set.
//
// LSTM_FUSED_ISA names the set and its namespace, LSTM_FUSED_VECTOR_BYTES is the width of a vector and
// LSTM_FUSED_REGISTERS how many of them the set has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lstm_fused::LSTM_FUSED_ISA {

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
};

template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
};

template <class Real>
using Vec = typename Simd<Real>::Vec;
template <class Real>
using Int = typename Simd<Real>::Int;

template <class Real>
constexpr int lanes = LSTM_FUSED_VECTOR_BYTES / sizeof(Real);

template <class Real>
inline Vec<Real> load(const Real* from) {
  Vec<Real> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class Real>
inline void store(Real* to, Vec<Real> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// Of the first n lanes only; the others read as zero and are not written.
template <class Real>
inline Vec<Real> load(const Real* from, int64_t n) {
  if (n >= lanes<Real>) return load(from);
  Vec<Real> v = {};
  __builtin_memcpy(&v, from, static_cast<size_t>(n) * sizeof(Real));
  return v;
}

template <class Real>
inline void store(Real* to, Vec<Real> v, int64_t n) {
  if (n >= lanes<Real>) return store(to, v);
  __builtin_memcpy(to, &v, static_cast<size_t>(n) * sizeof(Real));
}

template <class Real>
inline Vec<Real> broadcast(Real value) {
  return value - Vec<Real>{};  // keeps the sign of -0, as a sum would not
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
