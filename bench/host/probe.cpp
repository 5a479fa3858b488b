// What one core of this machine can do at most in FLOAT, which is float or double; limits.py compiles it for
// the machine and runs one on each thread.

#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <numbers>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
using Float = FLOAT;
constexpr bool DOUBLE = sizeof(Float) == 8;
using Int = std::conditional_t<DOUBLE, std::int64_t, std::int32_t>;
using Vector = Float __attribute__((vector_size(BYTES)));

constexpr int CHAINS = 12;  // two units of latency 4 or 5 need 10 in flight, and 16 registers hold 12
constexpr int N = 256;      // channels; all arrays of the cell stay in the first cache

template <class Work>
double rate(double seconds, double amount, Work work) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  double done = 0, elapsed = 0;
  do {
    work();
    done += amount;
    elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  } while (elapsed < seconds);
  return done / elapsed;
}

// Of 2^r for |r| <= 1/2, from the highest power on: minimax in float, Taylor's series in double.
constexpr auto COEFFICIENTS = [] {
  if constexpr (!DOUBLE) {
    return std::array{1.535336e-4f, 1.339887e-3f, 9.618437e-3f, 5.550332e-2f, 2.402265e-1f, 6.931472e-1f};
  } else {
    std::array<double, 12> found{};
    double next = 1;
    for (int k = 1; k <= 12; ++k) found[12 - k] = next *= std::numbers::ln2 / k;
    return found;
  }
}();

inline float round_even(float x) { return __builtin_rintf(x); }
inline double round_even(double x) { return __builtin_rint(x); }

// 2^x for x of ordinary size, to about the precision of Float.
inline Float exp2(Float x) {
  constexpr Float MOST = DOUBLE ? 1022 : 126;
  x = x < -MOST ? -MOST : x > MOST ? MOST : x;
  const Float whole = round_even(x), r = x - whole;
  const Int exponent = static_cast<std::int32_t>(whole) + (DOUBLE ? 1023 : 127);
  Float p = COEFFICIENTS[0];
#pragma GCC unroll 11
  for (std::size_t k = 1; k < COEFFICIENTS.size(); ++k) p = p * r + COEFFICIENTS[k];
  return std::bit_cast<Float>(exponent << (DOUBLE ? 52 : 23)) * (p * r + 1);
}
constexpr Float LOG2E = std::numbers::log2e_v<Float>;
inline Float sigmoid(Float x) { return 1 / (1 + exp2(-LOG2E * x)); }
inline Float tanh(Float x) { return 1 - 2 / (1 + exp2(2 * LOG2E * x)); }

struct Cell {
  alignas(64) Float i[N], f[N], g[N], o[N], c[N], c_prev[N], p_i[N], p_f[N], p_o[N];
  alignas(64) Float h[N], dh[N], dc[N], da_i[N], da_f[N], da_g[N], da_o[N];
};

void forward(Cell& s) {
  for (int n = 0; n < N; ++n) {
    const Float i = sigmoid(s.i[n] + s.p_i[n] * s.c_prev[n]);
    const Float f = sigmoid(s.f[n] + s.p_f[n] * s.c_prev[n]);
    const Float c = f * s.c_prev[n] + i * tanh(s.g[n]);
    s.c[n] = c;
    s.h[n] = sigmoid(s.o[n] + s.p_o[n] * c) * tanh(c);
  }
}

void backward(Cell& s) {
  for (int n = 0; n < N; ++n) {
    const Float i = s.i[n], f = s.f[n], g = s.g[n], o = s.o[n], dh = s.dh[n], t = tanh(s.c[n]);
    const Float da_o = dh * t * o * (1 - o);
    const Float dc = s.dc[n] + dh * o * (1 - t * t) + s.p_o[n] * da_o;
    const Float da_i = dc * g * i * (1 - i), da_f = dc * s.c_prev[n] * f * (1 - f);
    s.da_i[n] = da_i;
    s.da_f[n] = da_f;
    s.da_g[n] = dc * i * (1 - g * g);
    s.da_o[n] = da_o;
    s.dc[n] = dc * f + s.p_i[n] * da_i + s.p_f[n] * da_f;
  }
}

template <class Step>
double cell_rate(double seconds, Step step) {
  Cell cell{};
  return rate(seconds, 1e3 * N, [&] {
    for (int k = 0; k < 1000; ++k) {
      step(cell);
      asm volatile("" : : "r"(&cell) : "memory");  // the results are wanted, every time
    }
  });
}

}  // namespace

// FLOP/s of multiply-adds.
extern "C" double fma_rate(double seconds) {
  constexpr int TURNS = 10000;
  return rate(seconds, 2.0 * TURNS * CHAINS * BYTES / sizeof(Float), [] {
    const Vector half = Vector{} + Float(0.5);
    Vector sums[CHAINS];
    for (int k = 0; k < CHAINS; ++k) sums[k] = Vector{} + Float(k + 2);  // equal or constant ones would go
    for (int k = 0; k < TURNS; ++k) {
#pragma GCC unroll 12
      for (Vector& sum : sums) sum = sum * half + half;
    }
    asm volatile("" : : "r"(sums) : "memory");  // the sums are wanted
  });
}

// Channels/s of the elementwise cell, all values in cache.
extern "C" double cell_forward_rate(double seconds) { return cell_rate(seconds, forward); }
extern "C" double cell_backward_rate(double seconds) { return cell_rate(seconds, backward); }
