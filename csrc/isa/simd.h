// Vectors by the compiler's own extension, so that one source serves every instruction set; what it cannot
// express, the dot product of bfloat16 pairs, stores past the caches and the mode for subnormal numbers, is
// here and nowhere else.
//
// LSTM_FUSED_ISA names the set and its namespace, LSTM_FUSED_VECTOR_BYTES is the width of a vector and
// LSTM_FUSED_REGISTERS how many of them the set has; LSTM_FUSED_AVX512 and LSTM_FUSED_BF16_DOT say what it
// is.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "gemm/layout.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
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
using Bits = Simd<float>::Bits;

#ifdef LSTM_FUSED_AMX
constexpr bool has_matrix_unit = true;
#else
constexpr bool has_matrix_unit = false;
#endif

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Channels in a vector: as many numbers as are computed at a time, however they are stored.
template <class Number>
constexpr int lanes = LSTM_FUSED_VECTOR_BYTES / sizeof(Real<Number>);

// A vector of numbers as they are stored.
template <class Number>
struct Stored {
  typedef Vec<Number> Type;
  static Vec<Number> widen(Type v) { return v; }
  static Type narrow(Vec<Number> v) { return v; }
};

template <>
struct Stored<BFloat16> {
  typedef uint16_t Type __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES / 2)));
  static Vec<float> widen(Type v) { return (Vec<float>)(__builtin_convertvector(v, Bits) << 16); }
  // To the nearest, ties to even; a NaN stays one.
  static Type narrow(Vec<float> v) {
#ifdef LSTM_FUSED_BF16_DOT
    if constexpr (sizeof v == 64) return (Type)_mm512_cvtneps_pbh((__m512)v);
#endif
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : (bits >> 16 | 0x40), Type);
  }
};

// While it lives, subnormal numbers are zero in what this thread computes: a processor may take a hundred
// times as long over them, and vanishing gradients pass through them all.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before_); }

 private:
  const unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | uint64_t{1} << 24));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#else
  FlushSubnormals() {}
#endif
 public:
  FlushSubnormals(const FlushSubnormals&) = delete;
};

template <class Number>
inline Vec<Real<Number>> load(const Number* from) {
  typename Stored<Number>::Type v;
  __builtin_memcpy(&v, from, sizeof v);
  return Stored<Number>::widen(v);
}

template <class Number>
inline void store(Number* to, Vec<Real<Number>> v) {
  const typename Stored<Number>::Type stored = Stored<Number>::narrow(v);
  __builtin_memcpy(to, &stored, sizeof stored);
}

// Of the first n lanes only; the others read as zero and are not written.
template <class Number>
inline Vec<Real<Number>> load(const Number* from, int64_t n) {
  if (n >= lanes<Number>) return load(from);
  typename Stored<Number>::Type v = {};
  __builtin_memcpy(&v, from, static_cast<size_t>(n) * sizeof(Number));
  return Stored<Number>::widen(v);
}

template <class Number>
inline void store(Number* to, Vec<Real<Number>> v, int64_t n) {
  if (n >= lanes<Number>) return store(to, v);
  const typename Stored<Number>::Type stored = Stored<Number>::narrow(v);
  __builtin_memcpy(to, &stored, static_cast<size_t>(n) * sizeof(Number));
}

// The same past the caches: for what is read long after, and would only push out what is read soon. Before
// another thread reads it, `finish_streams`.
template <class Number>
inline void stream(Number* to, Vec<Real<Number>> v, int64_t n) {
  if constexpr (sizeof(Number) == sizeof(Real<Number>)) {
    if (n >= lanes<Number> && reinterpret_cast<uintptr_t>(to) % sizeof v == 0) {
#if defined(LSTM_FUSED_AVX512)
      return _mm512_stream_si512((__m512i*)to, (__m512i)v);
#elif LSTM_FUSED_VECTOR_BYTES == 32
      return _mm256_stream_si256((__m256i*)to, (__m256i)v);
#endif
    }
  }
  store(to, v, n);
}

inline void finish_streams() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

// Interleaves the vectors of the numbers that lie together in a unit, `apart` in memory; zero past `left`.
inline void store_unit(BFloat16* to, const BFloat16* from, int64_t apart, int64_t left) {
  Stored<BFloat16>::Type low = {}, high = {};
  if (left > 0) __builtin_memcpy(&low, from, sizeof low);
  if (left > 1) __builtin_memcpy(&high, from + apart, sizeof high);
  const Bits both = __builtin_convertvector(low, Bits) | __builtin_convertvector(high, Bits) << 16;
  __builtin_memcpy(to, &both, sizeof both);
}

// Two vectors' lanes in turn, from lane First of both on.
template <class Real, int First, int... N>
inline Vec<Real> interleave(Vec<Real> a, Vec<Real> b, std::integer_sequence<int, N...>) {
  constexpr int L = lanes<Real>;
#ifdef __clang__
  return __builtin_shufflevector(a, b, (First + N / 2 + N % 2 * L)...);
#else
  return __builtin_shuffle(a, b, Int<Real>{(First + N / 2 + N % 2 * L)...});
#endif
}

// Lane j of vector k and lane k of vector j change places: each round moves the highest bit of a number's
// place to the end, and after log2 of the lanes rounds its vector and its lane have changed roles.
template <class Real>
inline void transpose(Vec<Real>* v) {
  constexpr int L = lanes<Real>;
  constexpr std::make_integer_sequence<int, L> all;
#pragma GCC unroll 4
  for (int n = 1; n < L; n *= 2) {
    Vec<Real> next[L];
#pragma GCC unroll 16
    for (int k = 0; k < L / 2; ++k) {
      next[2 * k] = interleave<Real, 0>(v[k], v[k + L / 2], all);
      next[2 * k + 1] = interleave<Real, L / 2>(v[k], v[k + L / 2], all);
    }
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) v[k] = next[k];
  }
}

template <class Real>
inline Vec<Real> broadcast(Real value) {
  return value - Vec<Real>{};  // keeps the sign of -0, as a sum would not
}

// What one vector of packed weights and one factor add to a vector of sums. A float or double is a unit of
// its own. Of bfloat16 a unit is two neighbours in the inner dimension: both are taken at once where there is
// an instruction for it, or else one after the other, in `passes`.
template <class Number>
struct Unit {
  static constexpr int numbers = 1, passes = 1;
  typedef Vec<Number> Weights;
  static Weights weights(const Number* from, int) { return load(from); }
  static Weights factor(const Number* row, int64_t k, int) { return broadcast(row[k]); }
  static Vec<Number> multiply_add(Weights w, Weights factor, Vec<Number> sum) { return sum + w * factor; }
};

template <>
struct Unit<BFloat16> {
  static constexpr int numbers = 2;
  static uint32_t pair(const BFloat16* row, int64_t k) {
    uint32_t both;
    __builtin_memcpy(&both, row + 2 * k, sizeof both);
    return both;
  }
#ifdef LSTM_FUSED_BF16_DOT
  static constexpr int passes = 1;
  typedef __m512bh Weights;
  static Weights weights(const BFloat16* from, int) { return (Weights)_mm512_loadu_si512(from); }
  static Weights factor(const BFloat16* row, int64_t k, int) {
    return (Weights)_mm512_set1_epi32(static_cast<int>(pair(row, k)));
  }
  static Vec<float> multiply_add(Weights w, Weights factor, Vec<float> sum) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, w, factor);
  }
#else
  static constexpr int passes = 2;
  typedef Vec<float> Weights;
  static Weights weights(const BFloat16* from, int pass) {
    Bits both;
    __builtin_memcpy(&both, from, sizeof both);
    return (Weights)(pass == 0 ? both << 16 : both & 0xffff0000u);
  }
  static Weights factor(const BFloat16* row, int64_t k, int pass) {
    const uint32_t both = pair(row, k);
    return broadcast(__builtin_bit_cast(float, pass == 0 ? both << 16 : both & 0xffff0000u));
  }
  static Vec<float> multiply_add(Weights w, Weights factor, Vec<float> sum) { return sum + w * factor; }
#endif
};

}  // namespace lstm_fused::LSTM_FUSED_ISA
