// Multiplies few rows by weights in their own layout, where packing them would take longer than multiplying.
#pragma once

#include "gemm/macrokernel.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// One of the products that are added up: A [rows, K] times the transpose of W [4H, K].
template <class Real, class RowPtr>
struct UnpackedProduct {
  const Real* W;
  int64_t K;
  RowPtr row;  // row(r) is the address of row r of A
};

template <class Real, class RowPtr>
UnpackedProduct(const Real*, int64_t, RowPtr) -> UnpackedProduct<Real, RowPtr>;

// sums[r][n] += row `first + r` of A times row `channel + n` of W, lane by lane. Channels from `last` on are
// `last` again.
template <int Rows, int Channels, class Real, class RowPtr>
[[gnu::always_inline]] inline void add_lane_sums(Vec<Real> (&sums)[Rows][Channels],
                                                 const UnpackedProduct<Real, RowPtr>& product, int64_t first,
                                                 int64_t channel, int64_t last) {
  const int64_t K = product.K;
  const Real *a[Rows], *w[Channels];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) a[r] = product.row(first + r);
#pragma GCC unroll 8
  for (int n = 0; n < Channels; ++n) w[n] = product.W + min(channel + n, last) * K;
  const auto add = [&](auto load_at) __attribute__((always_inline)) {
    Vec<Real> factors[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) factors[r] = load_at(a[r]);
#pragma GCC unroll 8
    for (int n = 0; n < Channels; ++n) {
      const Vec<Real> weights = load_at(w[n]);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sums[r][n] = sums[r][n] + weights * factors[r];
    }
  };
  int64_t k = 0;
  for (; k + lanes<Real> <= K; k += lanes<Real>) add([&](const Real* from) { return load(from + k); });
  if (k < K) add([&](const Real* from) { return load(from + k, K - k); });
}

// Sums that stay in registers, with enough of them left for factors.
constexpr int lane_sums = LSTM_FUSED_REGISTERS > 16 ? 16 : 8;

// One vector of each of these rows of the accumulators, of channels [channel, channel + lanes) of W.
template <int Rows, class Real, class... Products>
[[gnu::noinline]] void multiply_unpacked(Real* to, int64_t stride, int64_t first, int64_t channel,
                                         int64_t last, const Products&... products) {
  constexpr int L = lanes<Real>, block = 16 / sizeof(Real), most = L < 8 ? L : 8;
  constexpr int Channels = lane_sums / Rows < most ? lane_sums / Rows : most, Blocks = Channels / block;
  Vec<Real> blocks[Rows][L / block];
  for (int n = 0; n < L; n += Channels) {
    Vec<Real> sums[Rows][Channels];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int m = 0; m < Channels; ++m) sums[r][m] = Vec<Real>{};
    (add_lane_sums(sums, products, first, channel + n, last), ...);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      sum_in_blocks<Real, Channels>(sums[r]);
      for (int k = 0; k < Blocks; ++k) blocks[r][n / block + k] = sums[r][k];
    }
  }
  for (int r = 0; r < Rows; ++r) store(to + r * stride, sum_blocks<Real>(blocks[r]));
}

// accumulators = the sum of the products, in the order of pack_gates. float32 alone: weights of the other
// dtypes are always packed.
template <class Real, class... Products>
void multiply_unpacked_gates(MacroTile<Real>& macrotile, int64_t H, const Products&... products) {
  if constexpr (std::is_same_v<Real, float>) {
    const FlushSubnormals flush;
    for (int64_t i = 0; i < macrotile.count; ++i) {
      AccumulatorTile<Real>& tile = macrotile.tiles[i];
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t gate = v % 4, j = (tile.first_panel / gate_panels + v / 4) * lanes<Real>;
        const int64_t channel = gate * H + j, last = gate * H + H - 1;
        int64_t r = 0;
        const auto multiply = [&]<int Rows>() {
          for (; r + Rows <= tile.rows; r += Rows)
            multiply_unpacked<Rows>(tile.at(r, 0) + v * lanes<Real>, tile.stride, tile.first_row + r, channel,
                                    last, products...);
        };
        if constexpr (lane_sums == 16) multiply.template operator()<4>();
        multiply.template operator()<2>();
        multiply.template operator()<1>();
      }
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
