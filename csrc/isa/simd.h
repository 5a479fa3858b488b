// Vectors of any instruction set: load, store, convert, transpose, multiply-add.
//
// They are GCC's vector extension, so that one source serves every instruction set. The few intrinsics that
// it cannot express (bfloat16 dot products, maxima, streaming stores, flushing subnormal numbers) are in this
// file.
//
// LSTM_FUSED_ISA names the instruction set and its namespace. LSTM_FUSED_VECTOR_BYTES is the width of a
// vector, LSTM_FUSED_REGISTERS the number of vector registers for weights and accumulators. LSTM_FUSED_MR
// overrides mr(); LSTM_FUSED_AVX2, LSTM_FUSED_AVX512, LSTM_FUSED_BF16_DOT and LSTM_FUSED_AMX are defined
// where the set has these instructions.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "isa/dtypes.h"

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

// A vector of what scalar_t is computed in: of bfloat16, float32.
template <class scalar_t>
using Vec = typename Simd<acc_t<scalar_t>>::Vec;
template <class Real>
using Int = typename Simd<Real>::Int;
using Bits = Simd<float>::Bits;

#ifdef LSTM_FUSED_AMX
constexpr bool has_amx = true;
#else
constexpr bool has_amx = false;
#endif

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Elements of a vector.
template <class scalar_t>
constexpr int lanes = LSTM_FUSED_VECTOR_BYTES / sizeof(acc_t<scalar_t>);

// As many elements as they are stored in memory, and the conversions.
template <class scalar_t>
struct Stored {
  typedef Vec<scalar_t> Type;
  static Vec<scalar_t> widen(Type v) { return v; }
  static Type narrow(Vec<scalar_t> v) { return v; }
};

template <>
struct Stored<BFloat16> {
  typedef uint16_t Type __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES / 2)));
  static Vec<float> widen(Type v) { return (Vec<float>)(__builtin_convertvector(v, Bits) << 16); }
  // Rounds to nearest, ties to even; NaN stays NaN.
  static Type narrow(Vec<float> v) {
#ifdef LSTM_FUSED_BF16_DOT
    if constexpr (sizeof v == 64) return (Type)_mm512_cvtneps_pbh((__m512)v);
#endif
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : (bits >> 16 | 0x40), Type);
  }
};

// Flushes subnormal numbers to zero on this thread, until the end of the scope: processors may take a hundred
// times as long to compute with them, and vanishing gradients pass through their range.
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

template <class scalar_t>
inline Vec<scalar_t> load(const scalar_t* from) {
  typename Stored<scalar_t>::Type v;
  __builtin_memcpy(&v, from, sizeof v);
  return Stored<scalar_t>::widen(v);
}

template <class scalar_t>
inline void store(scalar_t* to, Vec<scalar_t> v) {
  const typename Stored<scalar_t>::Type stored = Stored<scalar_t>::narrow(v);
  __builtin_memcpy(to, &stored, sizeof stored);
}

// The first n lanes only; other lanes read as zero and are not written.
template <class scalar_t>
inline Vec<scalar_t> load(const scalar_t* from, int64_t n) {
  if (n >= lanes<scalar_t>) return load(from);
  typename Stored<scalar_t>::Type v = {};
  __builtin_memcpy(&v, from, static_cast<size_t>(n) * sizeof(scalar_t));
  return Stored<scalar_t>::widen(v);
}

template <class scalar_t>
inline void store(scalar_t* to, Vec<scalar_t> v, int64_t n) {
  if (n >= lanes<scalar_t>) return store(to, v);
  const typename Stored<scalar_t>::Type stored = Stored<scalar_t>::narrow(v);
  __builtin_memcpy(to, &stored, static_cast<size_t>(n) * sizeof(scalar_t));
}

// Stores past the caches, for data that is read so late that caching it would only evict other data; only
// whole cache lines. Call streaming_fence() before another thread reads it.
template <class scalar_t>
inline void stream(scalar_t* to, Vec<scalar_t> v, int64_t n) {
  if constexpr (sizeof(scalar_t) == sizeof(acc_t<scalar_t>)) {
    if (n >= lanes<scalar_t> && reinterpret_cast<uintptr_t>(to) % sizeof v == 0) {
#if defined(LSTM_FUSED_AVX512)
      return _mm512_stream_si512((__m512i*)to, (__m512i)v);
#endif
    }
  }
  store(to, v, n);
}

inline void streaming_fence() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

// Interleaves rows k and k + 1, of which `left` exist, into a vector of VNNI pairs.
inline void store_vnni_pairs(BFloat16* to, const BFloat16* from, int64_t k_stride, int64_t left) {
  Stored<BFloat16>::Type low = {}, high = {};
  if (left > 0) __builtin_memcpy(&low, from, sizeof low);
  if (left > 1) __builtin_memcpy(&high, from + k_stride, sizeof high);
  const Bits both = __builtin_convertvector(low, Bits) | __builtin_convertvector(high, Bits) << 16;
  __builtin_memcpy(to, &both, sizeof both);
}

// A vector whose lane N is lane From(N) of a, or of b from lanes<Real> on.
template <class Real, class From, int... N>
inline Vec<Real> shuffle(Vec<Real> a, Vec<Real> b, From, std::integer_sequence<int, N...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, From::lane(N)...);
#else
  return __builtin_shuffle(a, b, Int<Real>{From::lane(N)...});
#endif
}

// Lanes of a and b alternately, from lane First of every block of 128 bits on: unpcklps and unpckhps.
template <class Real, int First>
struct Interleaved {
  static constexpr int block = 16 / sizeof(Real);
  static constexpr int lane(int n) { return n / block * block + First + n % block / 2 + n % 2 * lanes<Real>; }
};

// Blocks of 128 bits whose number lacks the bit from a, the others from b; the half of each that is taken is
// the one without (Second = 0) or with the bit.
template <class Real, int Bit, int Second>
struct Exchanged {
  static constexpr int block = 16 / sizeof(Real);
  static constexpr int lane(int n) {
    const int without = n / block & Bit ? n - Bit * block : n;
    return without + Second * Bit * block + (n / block & Bit ? lanes<Real> : 0);
  }
};

// Exchanges, among v[k] and the vectors at distance Bit blocks, the bit of the vector's and of the block's
// number.
template <class Real, int Bit>
inline void exchange_blocks(Vec<Real>* v) {
  constexpr int L = lanes<Real>, block = 16 / sizeof(Real);
  constexpr std::make_integer_sequence<int, L> all;
  if constexpr (Bit * block < L) {
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) {
      if (k / block & Bit) continue;
      const Vec<Real> a = v[k], b = v[k + Bit * block];
      v[k] = shuffle<Real>(a, b, Exchanged<Real, Bit, 0>{}, all);
      v[k + Bit * block] = shuffle<Real>(a, b, Exchanged<Real, Bit, 1>{}, all);
    }
    exchange_blocks<Real, 2 * Bit>(v);
  }
}

// Transposes a square of lanes × lanes: first, among vectors of one block, within each block of 128 bits,
// where each round rotates the bits of (vector, lane) by one; then the blocks. One instruction a shuffle.
template <class Real>
inline void transpose(Vec<Real>* v) {
  constexpr int L = lanes<Real>, block = 16 / sizeof(Real);
  constexpr std::make_integer_sequence<int, L> all;
#pragma GCC unroll 2
  for (int n = 1; n < block; n *= 2) {
    Vec<Real> next[L];
#pragma GCC unroll 16
    for (int k = 0; k < L / 2; ++k) {
      const int from = k / (block / 2) * block + k % (block / 2);
      next[2 * k] = shuffle<Real>(v[from], v[from + block / 2], Interleaved<Real, 0>{}, all);
      next[2 * k + 1] = shuffle<Real>(v[from], v[from + block / 2], Interleaved<Real, block / 2>{}, all);
    }
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) v[k] = next[k];
  }
  exchange_blocks<Real, 1>(v);
}

// Sums of the lanes of each of many vectors, in two parts: a transpose that adds on the way, and so takes
// half the shuffles. The first: each block of 128 bits of v[k] becomes the sums of that block of the vectors
// from v[k * block] on, as many as the block has lanes.
template <class Real, int Count>
inline void sum_in_blocks(Vec<Real>* v) {
  constexpr int block = 16 / sizeof(Real);
  constexpr std::make_integer_sequence<int, lanes<Real>> all;
#pragma GCC unroll 2
  for (int apart = block / 2; apart > 0; apart /= 2)
#pragma GCC unroll 8
    for (int k = 0; k < Count * apart / block; ++k) {
      const Vec<Real> a = v[k / apart * 2 * apart + k % apart],
                      b = v[k / apart * 2 * apart + k % apart + apart];
      v[k] = shuffle<Real>(a, b, Interleaved<Real, 0>{}, all) +
             shuffle<Real>(a, b, Interleaved<Real, block / 2>{}, all);
    }
}

// The second: block k of the result is the sum of the blocks of v[k], of as many vectors as blocks.
template <class Real, int Bit = 1>
inline Vec<Real> sum_blocks(Vec<Real>* v) {
  constexpr int L = lanes<Real>, block = 16 / sizeof(Real);
  constexpr std::make_integer_sequence<int, L> all;
  if constexpr (Bit * block == L)
    return v[0];
  else {
#pragma GCC unroll 4
    for (int k = 0; k < L / block / 2 / Bit; ++k)
      v[k] = shuffle<Real>(v[2 * k], v[2 * k + 1], Exchanged<Real, Bit, 0>{}, all) +
             shuffle<Real>(v[2 * k], v[2 * k + 1], Exchanged<Real, Bit, 1>{}, all);
    return sum_blocks<Real, 2 * Bit>(v);
  }
}

template <class Real>
inline Vec<Real> broadcast(Real value) {
  return value - Vec<Real>{};  // value + 0 would lose the sign of -0
}

// The larger of x and a bound; NaN stays. GCC does not find x86's instruction for it, which of two numbers
// takes the second if one of them is NaN. (The unmasked intrinsics of AVX-512 warn in GCC 12.)
template <class Real>
inline Vec<Real> at_least(Vec<Real> x, Real bound) {
  const Vec<Real> low = broadcast(bound);
#if defined(LSTM_FUSED_AVX512)
  if constexpr (sizeof(Real) == 4) return (Vec<Real>)_mm512_maskz_max_ps(0xffff, (__m512)low, (__m512)x);
  if constexpr (sizeof(Real) == 8) return (Vec<Real>)_mm512_maskz_max_pd(0xff, (__m512d)low, (__m512d)x);
#elif LSTM_FUSED_VECTOR_BYTES == 32
  if constexpr (sizeof(Real) == 4) return (Vec<Real>)_mm256_max_ps((__m256)low, (__m256)x);
  if constexpr (sizeof(Real) == 8) return (Vec<Real>)_mm256_max_pd((__m256d)low, (__m256d)x);
#endif
  return x < low ? low : x;
}

// The smaller of x and a bound; NaN stays.
template <class Real>
inline Vec<Real> at_most(Vec<Real> x, Real bound) {
  const Vec<Real> high = broadcast(bound);
#if defined(LSTM_FUSED_AVX512)
  if constexpr (sizeof(Real) == 4) return (Vec<Real>)_mm512_maskz_min_ps(0xffff, (__m512)high, (__m512)x);
  if constexpr (sizeof(Real) == 8) return (Vec<Real>)_mm512_maskz_min_pd(0xff, (__m512d)high, (__m512d)x);
#elif LSTM_FUSED_VECTOR_BYTES == 32
  if constexpr (sizeof(Real) == 4) return (Vec<Real>)_mm256_min_ps((__m256)high, (__m256)x);
  if constexpr (sizeof(Real) == 8) return (Vec<Real>)_mm256_min_pd((__m256d)high, (__m256d)x);
#endif
  return x > high ? high : x;
}

// Multiply-add of one k-group: a vector of packed weights times a broadcast element of the operand row. VNNI
// pairs take one instruction where the set has one, else two passes.
template <class scalar_t>
struct KGroup {
  static constexpr int passes = 1;
  typedef Vec<scalar_t> Operand;
  static Operand weights(const scalar_t* from, int) { return load(from); }
  static Operand element(const scalar_t* row, int64_t k, int) { return broadcast(row[k]); }
  static Vec<scalar_t> multiply_add(Operand w, Operand a, Vec<scalar_t> sum) { return sum + w * a; }
};

template <>
struct KGroup<BFloat16> {
  static uint32_t pair(const BFloat16* row, int64_t k) {
    uint32_t both;
    __builtin_memcpy(&both, row + 2 * k, sizeof both);
    return both;
  }
#ifdef LSTM_FUSED_BF16_DOT
  static constexpr int passes = 1;
  typedef __m512bh Operand;
  static Operand weights(const BFloat16* from, int) { return (Operand)_mm512_loadu_si512(from); }
  static Operand element(const BFloat16* row, int64_t k, int) {
    return (Operand)_mm512_set1_epi32(static_cast<int>(pair(row, k)));
  }
  static Vec<float> multiply_add(Operand w, Operand a, Vec<float> sum) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, w, a);
  }
#else
  static constexpr int passes = 2;
  typedef Vec<float> Operand;
  static Operand weights(const BFloat16* from, int pass) {
    Bits both;
    __builtin_memcpy(&both, from, sizeof both);
    return (Operand)(pass == 0 ? both << 16 : both & 0xffff0000u);
  }
  static Operand element(const BFloat16* row, int64_t k, int pass) {
    const uint32_t both = pair(row, k);
    return broadcast(__builtin_bit_cast(float, pass == 0 ? both << 16 : both & 0xffff0000u));
  }
  static Vec<float> multiply_add(Operand w, Operand a, Vec<float> sum) { return sum + w * a; }
#endif
};

}  // namespace lstm_fused::LSTM_FUSED_ISA
