// Sums of few outer products, where packing the factors would take longer than multiplying them.
#pragma once

#include "isa/simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// to[m, n] = the sum over k < K of A[k, m] B[k, n], rows [m0, m1) of to [M, N]; K is at most max_outer_rows.
// a(k) and b(k) are the addresses of rows k. Adds in the micro-kernel's order, so the bits are its own.
template <class Real, class RowOfA, class RowOfB>
void add_outer_products(RowOfA a, RowOfB b, int64_t K, int64_t m0, int64_t m1, int64_t N, Real* to) {
  constexpr int64_t L = lanes<Real>;
  const int64_t whole = N / L * L;
  Vec<Real> rest[max_outer_rows];
  for (int64_t k = 0; k < K && whole < N; ++k) rest[k] = load(b(k) + whole, N - whole);
  const FlushSubnormals flush;
  for (int64_t m = m0; m < m1; ++m) {
    Real* row = to + m * N;
    int64_t n = 0;
    const auto add = [&]<int V>() {  // vectors whose element of A is broadcast once
      for (; n + V * L <= whole; n += V * L) {
        Vec<Real> sum[V] = {};
        for (int64_t k = 0; k < K; ++k) {
          const Vec<Real> factor = broadcast(a(k)[m]);
          for (int v = 0; v < V; ++v) sum[v] = sum[v] + factor * load(b(k) + n + v * L);
        }
        for (int v = 0; v < V; ++v) store(row + n + v * L, sum[v]);
      }
    };
    add.template operator()<4>();
    add.template operator()<1>();
    if (n == N) continue;
    Vec<Real> sum{};
    for (int64_t k = 0; k < K; ++k) sum = sum + broadcast(a(k)[m]) * rest[k];
    store(row + n, sum, N - n);
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
