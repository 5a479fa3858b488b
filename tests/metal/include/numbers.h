// half and bfloat, which round to nearest even after every operation, and vectors.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "traits.h"

#ifdef METAL_DOUBLE
#define float double  // the same source, in double precision
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

#ifndef METAL_ADDRESS_SPACES
namespace emulation {

typedef __typeof__(0.0f) single;  // float, also where that is double

// The bits of a number with EXPONENT and MANTISSA bits, as a float rounds to them.
template <int EXPONENT, int MANTISSA>
constexpr uint16_t rounded(single value) {
  uint32_t bits = __builtin_bit_cast(uint32_t, value);
  uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  constexpr uint16_t infinity = ((1 << EXPONENT) - 1) << MANTISSA;
  constexpr int bias = (1 << (EXPONENT - 1)) - 1, dropped = 23 - MANTISSA;
  if (bits > 0x7f800000) return uint16_t(sign | infinity | 1 << (MANTISSA - 1));
  int exponent = int(bits >> 23) - 127 + bias;  // as the result has it
  if (exponent >= (1 << EXPONENT) - 1) return uint16_t(sign | infinity);
  uint32_t mantissa = bits & 0x7fffff;
  int shift = dropped;
  if (EXPONENT == 8)
    mantissa = bits;  // same exponent, subnormal numbers too
  else if (exponent > 0)
    mantissa |= uint32_t(exponent) << 23;
  else {
    mantissa |= 0x800000;
    shift += 1 - exponent;
    if (shift > 24) return sign;
  }
  uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
  if (rest > half || (rest == half && (kept & 1))) kept++;
  return uint16_t(sign | kept);
}

template <int EXPONENT, int MANTISSA>
constexpr single widened(uint16_t bits) {
  uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (EXPONENT == 8) return __builtin_bit_cast(single, sign | rest << 16);
  uint32_t exponent = rest >> MANTISSA, mantissa = rest & ((1 << MANTISSA) - 1);
  if (exponent == (1 << EXPONENT) - 1)
    return __builtin_bit_cast(single, sign | 0x7f800000 | mantissa << (23 - MANTISSA));
  constexpr int bias = (1 << (EXPONENT - 1)) - 1;
  if (exponent)
    return __builtin_bit_cast(single, sign | (exponent + 127 - bias) << 23 | mantissa << (23 - MANTISSA));
  single tiny = single(mantissa) * __builtin_bit_cast(single, uint32_t(127 + 1 - bias - MANTISSA) << 23);
  return sign ? -tiny : tiny;
}

// Stricter than Metal: float does not convert to it unasked.
template <int EXPONENT, int MANTISSA>
struct small {
  uint16_t bits;

  small() = default;
  template <class T, class = enable_if<Code<T>::value != '?'>>
  explicit constexpr small(T value) : bits(rounded<EXPONENT, MANTISSA>(single(value))) {}
  template <int E, int M, class = enable_if<E != EXPONENT>>
  explicit constexpr small(small<E, M> value) : small(single(value)) {}
  constexpr operator float() const { return widened<EXPONENT, MANTISSA>(bits); }

  constexpr small operator-() const { return small(-single(*this)); }
  friend constexpr small operator+(small a, small b) { return small(float(a) + float(b)); }
  friend constexpr small operator-(small a, small b) { return small(float(a) - float(b)); }
  friend constexpr small operator*(small a, small b) { return small(float(a) * float(b)); }
  friend constexpr small operator/(small a, small b) { return small(float(a) / float(b)); }
  template <class T>
  small& operator+=(T b) {
    return *this = small(*this + b);
  }
  template <class T>
  small& operator-=(T b) {
    return *this = small(*this - b);
  }
  template <class T>
  small& operator*=(T b) {
    return *this = small(*this * b);
  }
  template <class T>
  small& operator/=(T b) {
    return *this = small(*this / b);
  }
};

}  // namespace emulation

typedef emulation::small<5, 10> half;
typedef emulation::small<8, 7> bfloat;
constexpr half operator"" h(long double value) { return half(value); }
constexpr bfloat operator"" bf(long double value) { return bfloat(value); }
#else
typedef _Float16 half;
typedef __bf16 bfloat;
constexpr half operator"" h(long double value) { return half(value); }
constexpr bfloat operator"" bf(long double value) { return bfloat(value); }
#endif

// Vectors, without swizzles of several components. In the pass for address spaces they copy from and to each
// of them.
#ifdef METAL_ADDRESS_SPACES
#define FROM_EVERY_SPACE(N, ...)                                             \
  vec(const vec&) = default;                                                 \
  vec(const __attribute__((address_space(1))) vec<T, N>& v) : __VA_ARGS__ {} \
  vec(const __attribute__((address_space(2))) vec<T, N>& v) : __VA_ARGS__ {} \
  vec(const __attribute__((address_space(3))) vec<T, N>& v) : __VA_ARGS__ {}
#else
#define FROM_EVERY_SPACE(N, ...)
#endif

namespace metal {

template <class T, int N>
struct vec;

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  vec() = default;
  FROM_EVERY_SPACE(2, x(v.x), y(v.y))
  constexpr vec(T s) : x(s), y(s) {}
  constexpr vec(T x_, T y_) : x(x_), y(y_) {}
  template <class U, class = emulation::enable_if<!emulation::Same<T, U>::value>>
  explicit constexpr vec(vec<U, 2> v) : x(T(v.x)), y(T(v.y)) {}
  T& operator[](uint i) { return (&x)[i]; }
  const T& operator[](uint i) const { return (&x)[i]; }
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  vec() = default;
  FROM_EVERY_SPACE(3, x(v.x), y(v.y), z(v.z))
  constexpr vec(T s) : x(s), y(s), z(s) {}
  constexpr vec(T x_, T y_, T z_) : x(x_), y(y_), z(z_) {}
  template <class U, class = emulation::enable_if<!emulation::Same<T, U>::value>>
  explicit constexpr vec(vec<U, 3> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)) {}
  T& operator[](uint i) { return (&x)[i]; }
  const T& operator[](uint i) const { return (&x)[i]; }
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  FROM_EVERY_SPACE(4, x(v.x), y(v.y), z(v.z), w(v.w))
  constexpr vec(T s) : x(s), y(s), z(s), w(s) {}
  constexpr vec(T x_, T y_, T z_, T w_) : x(x_), y(y_), z(z_), w(w_) {}
  template <class U, class = emulation::enable_if<!emulation::Same<T, U>::value>>
  explicit constexpr vec(vec<U, 4> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
  T& operator[](uint i) { return (&x)[i]; }
  const T& operator[](uint i) const { return (&x)[i]; }
};

#define VECTOR_OPERATOR(OP)                                \
  template <class T, int N>                                \
  inline vec<T, N> operator OP(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = T(a[i] OP b[i]);    \
    return a;                                              \
  }                                                        \
  template <class T, int N>                                \
  inline vec<T, N> operator OP(vec<T, N> a, T b) {         \
    return a OP vec<T, N>(b);                              \
  }                                                        \
  template <class T, int N>                                \
  inline vec<T, N> operator OP(T a, vec<T, N> b) {         \
    return vec<T, N>(a) OP b;                              \
  }                                                        \
  template <class T, int N, class U>                       \
  inline vec<T, N>& operator OP## = (vec<T, N> & a, U b) { \
    return a = a OP b;                                     \
  }
VECTOR_OPERATOR(+)
VECTOR_OPERATOR(-)
VECTOR_OPERATOR(*)
VECTOR_OPERATOR(/)
#undef VECTOR_OPERATOR

template <class T, int N>
inline vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = -a[i];
  return a;
}

template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(0);
  for (int i = 0; i < N; i++) sum = T(sum + a[i] * b[i]);
  return sum;
}

}  // namespace metal

#define VECTORS(T)               \
  typedef metal::vec<T, 2> T##2; \
  typedef metal::vec<T, 3> T##3; \
  typedef metal::vec<T, 4> T##4; \
  namespace metal {              \
  using ::T##2;                  \
  using ::T##3;                  \
  using ::T##4;                  \
  }
VECTORS(char)
VECTORS(uchar)
VECTORS(short)
VECTORS(ushort)
VECTORS(int)
VECTORS(uint)
VECTORS(long)
VECTORS(ulong)
VECTORS(half)
VECTORS(bfloat)
#undef VECTORS
// Not by the macro, which would name them double2 in double precision.
typedef metal::vec<float, 2> float2;
typedef metal::vec<float, 3> float3;
typedef metal::vec<float, 4> float4;
namespace metal {
using ::float2;
using ::float3;
using ::float4;
}  // namespace metal
