// What one core of this machine can do at most; compiled for it by limits.py, which runs one on each thread.

#include <bit>
#include <chrono>
#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
using Vector = float __attribute__((vector_size(BYTES)));

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

// 2^x for x of ordinary size, to about float32's precision.
inline float exp2(float x) {
  x = x < -126 ? -126 : x > 126 ? 126 : x;
  const float whole = __builtin_rintf(x), r = x - whole;
  const float power = std::bit_cast<float>((static_cast<std::int32_t>(whole) + 127) << 23);
  float p = 1.535336e-4f;
  p = p * r + 1.339887e-3f;
  p = p * r + 9.618437e-3f;
  p = p * r + 5.550332e-2f;
  p = p * r + 2.402265e-1f;
  p = p * r + 6.931472e-1f;
  return power * (p * r + 1);
}
inline float sigmoid(float x) { return 1 / (1 + exp2(-1.442695f * x)); }
inline float tanh(float x) { return 1 - 2 / (1 + exp2(2.885390f * x)); }

struct Cell {
  alignas(64) float i[N], f[N], g[N], o[N], c[N], c_prev[N], p_i[N], p_f[N], p_o[N];
  alignas(64) float h[N], dh[N], dc[N], da_i[N], da_f[N], da_g[N], da_o[N];
};

void forward(Cell& s) {
  for (int n = 0; n < N; ++n) {
    const float i = sigmoid(s.i[n] + s.p_i[n] * s.c_prev[n]);
    const float f = sigmoid(s.f[n] + s.p_f[n] * s.c_prev[n]);
    const float c = f * s.c_prev[n] + i * tanh(s.g[n]);
    s.c[n] = c;
    s.h[n] = sigmoid(s.o[n] + s.p_o[n] * c) * tanh(c);
  }
}

void backward(Cell& s) {
  for (int n = 0; n < N; ++n) {
    const float i = s.i[n], f = s.f[n], g = s.g[n], o = s.o[n], dh = s.dh[n], t = tanh(s.c[n]);
    const float da_o = dh * t * o * (1 - o);
    const float dc = s.dc[n] + dh * o * (1 - t * t) + s.p_o[n] * da_o;
    const float da_i = dc * g * i * (1 - i), da_f = dc * s.c_prev[n] * f * (1 - f);
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

// FLOP/s of float32 multiply-adds.
extern "C" double fma_rate(double seconds) {
  constexpr int TURNS = 10000;
  return rate(seconds, 2.0 * TURNS * CHAINS * BYTES / sizeof(float), [] {
    const Vector half = Vector{} + 0.5f;
    Vector sums[CHAINS];
    for (int k = 0; k < CHAINS; ++k) sums[k] = Vector{} + (k + 2.0f);  // equal or constant ones would go
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
