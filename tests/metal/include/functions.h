// Common, relational and mathematical functions. Those that fast math may replace are the worst that it makes
// of them.
#pragma once
#include "numbers.h"

#define INFINITY (float(__builtin_inff()))
#define NAN (float(__builtin_nanf("")))
#define FLT_MAX (3.402823466e+38F)
#define FLT_MIN (1.175494351e-38F)
#define FLT_EPSILON (1.192092896e-07F)

namespace metal {

#ifdef METAL_DOUBLE
#define BUILTIN(NAME) __builtin_##NAME
#else
#define BUILTIN(NAME) __builtin_##NAME##f
#endif

// Of float, of half through float, of vectors by component.
#define FUNCTION(NAME, EXPRESSION)                  \
  inline float NAME(float x) { return EXPRESSION; } \
  inline half NAME(half h) {                        \
    float x = float(h);                             \
    return half(EXPRESSION);                        \
  }                                                 \
  template <class T, int N>                         \
  inline vec<T, N> NAME(vec<T, N> v) {              \
    for (int i = 0; i < N; i++) v[i] = NAME(v[i]);  \
    return v;                                       \
  }
// By its own name, which fast math may replace, and as precise:: and fast::.
#define THREE_FUNCTIONS(NAME, PRECISE, FAST) \
  FUNCTION(NAME, FAST)                       \
  namespace precise {                        \
  FUNCTION(NAME, PRECISE)                    \
  }                                          \
  namespace fast {                           \
  FUNCTION(NAME, FAST)                       \
  }

THREE_FUNCTIONS(exp, BUILTIN(exp)(x), BUILTIN(exp)(x))
THREE_FUNCTIONS(exp2, BUILTIN(exp2)(x), BUILTIN(exp2)(x))
THREE_FUNCTIONS(log, BUILTIN(log)(x), BUILTIN(log)(x))
THREE_FUNCTIONS(log2, BUILTIN(log2)(x), BUILTIN(log2)(x))
THREE_FUNCTIONS(sqrt, BUILTIN(sqrt)(x), BUILTIN(sqrt)(x))
THREE_FUNCTIONS(rsqrt, 1 / BUILTIN(sqrt)(x), 1 / BUILTIN(sqrt)(x))
// The specification, table 8.2: fast tanh is (t - 1) / (t + 1) with t = exp(2x), NaN where t overflows.
THREE_FUNCTIONS(tanh, BUILTIN(tanh)(x), ((BUILTIN(exp)(2 * x) - 1) / (BUILTIN(exp)(2 * x) + 1)))
THREE_FUNCTIONS(floor, BUILTIN(floor)(x), BUILTIN(floor)(x))
THREE_FUNCTIONS(ceil, BUILTIN(ceil)(x), BUILTIN(ceil)(x))
THREE_FUNCTIONS(rint, BUILTIN(rint)(x), BUILTIN(rint)(x))
THREE_FUNCTIONS(trunc, BUILTIN(trunc)(x), BUILTIN(trunc)(x))
THREE_FUNCTIONS(fabs, BUILTIN(fabs)(x), BUILTIN(fabs)(x))
FUNCTION(abs, BUILTIN(fabs)(x))
FUNCTION(sign, x > 0 ? float(1) : x < 0 ? float(-1) : float(0))
FUNCTION(saturate, x > 0 ? (x < 1 ? x : float(1)) : float(0))
#undef THREE_FUNCTIONS
#undef FUNCTION

inline int abs(int x) { return x < 0 ? -x : x; }
inline float fma(float a, float b, float c) { return BUILTIN(fma)(a, b, c); }
inline half fma(half a, half b, half c) { return half(BUILTIN(fma)(float(a), float(b), float(c))); }
inline float copysign(float a, float b) { return BUILTIN(copysign)(a, b); }
inline float pow(float a, float b) { return BUILTIN(pow)(a, b); }
namespace precise {
inline float divide(float a, float b) { return a / b; }
inline float pow(float a, float b) { return BUILTIN(pow)(a, b); }
using metal::fma;
}  // namespace precise
namespace fast {
inline float divide(float a, float b) { return a / b; }
using metal::fma;
}  // namespace fast

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
// The number, where one of the two is NaN.
inline float fmin(float a, float b) { return BUILTIN(fmin)(a, b); }
inline float fmax(float a, float b) { return BUILTIN(fmax)(a, b); }
template <class T>
inline T mix(T a, T b, T t) {
  return T(a + (b - a) * t);
}
template <class T>
inline T select(T a, T b, bool c) {
  return c ? b : a;
}
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
#undef BUILTIN

}  // namespace metal

template <class To, class From>
inline To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  return __builtin_bit_cast(To, value);
}
