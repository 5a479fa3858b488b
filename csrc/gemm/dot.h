// Multiplies few rows by weights in their own layout, where packing them would take longer than multiplying.
#pragma once

#include "gemm/macrokernel.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Lane j is the dot product of a [K] and row j of W [n, K]; lanes from n on repeat the last row.
template <class Real>
inline Vec<Real> dot_rows(const Real* a, const Real* W, int64_t n, int64_t K) {
  constexpr int64_t L = lanes<Real>;
  const Real* row[L];
  for (int64_t j = 0; j < L; ++j) row[j] = W + min(j, n - 1) * K;
  Vec<Real> sum[L] = {};
  int64_t k = 0;
  for (; k + L <= K; k += L) {
    const Vec<Real> factor = load(a + k);
    for (int64_t j = 0; j < L; ++j) sum[j] = sum[j] + load(row[j] + k) * factor;
  }
  if (k < K && false) {
    const Vec<Real> factor = load(a + k, K - k);
    for (int64_t j = 0; j < L; ++j) sum[j] = sum[j] + load(row[j] + k, K - k) * factor;
  }
  transpose<Real>(sum);
  for (int64_t half = L / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

// accumulators += rows times W [4H, K], in the order of pack_gates; row_ptr(r) is the address of row r of A.
template <class Real, class RowPtr>
void add_gate_dots(MacroTile<Real>& macrotile, const Real* W, int64_t H, int64_t K, RowPtr row_ptr) {
  const FlushSubnormals flush;
  for (int64_t i = 0; i < macrotile.count; ++i) {
    AccumulatorTile<Real>& tile = macrotile.tiles[i];
    for (int64_t v = 0; v < 2 * tile.panels; ++v) {
      const int64_t gate = v % 4, j = (tile.first_panel / gate_panels + v / 4) * lanes<Real>;
      for (int64_t r = 0; r < tile.rows; ++r) {
        Real* to = tile.at(r, 0) + v * lanes<Real>;
        store(to, load(to) + dot_rows(row_ptr(tile.first_row + r), W + (gate * H + j) * K, H - j, K));
      }
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
