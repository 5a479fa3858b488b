// The product of a few rows with packed weights, in registers.
#pragma once

#include "simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Accumulators that leave registers for the weights of a panel and a broadcast factor.
constexpr int accumulators = LSTM_FUSED_REGISTERS - 4;
// A panel is two vectors wide: the tallest tile has one panel, so that each weight loaded serves most rows.
constexpr int tile_rows = accumulators / 2;
constexpr int gate_panels = 2;  // i, f and g, o of one vector of channels

// Panels side by side for a tile of this many rows: lower tiles are wider, to keep as many products in
// flight.
constexpr int panels_of(int rows) { return rows * 8 <= accumulators ? 4 : rows * 4 <= accumulators ? 2 : 1; }

template <class Real>
constexpr int panel = 2 * lanes<Real>;

// Products added up before they join the sum, for long chains of additions lose accuracy. Libraries take a
// few rows as matrix by vector products with many short chains, and so do we: memory, not arithmetic, binds
// these.
constexpr int64_t chain_of(int rows) { return rows <= 3 ? 16 : 128; }

// How many k ahead weights are fetched: the processor's own prefetching stops at the end of every page.
constexpr int ahead = 16;

// Adds rows k in [first, last) times weights, P panels [K, panel] that lie `apart`, to R sums that lie
// `stride`. Never inlined: the rows' addresses need every register that a caller's own would take.
template <class Real, int R, int P>
[[gnu::noinline]] void multiply(const Real* const* rows, int64_t first, int64_t last, const Real* weights,
                                int64_t apart, Real* sums, int64_t stride) {
  constexpr int V = 2 * P;
  Vec<Real> sum[R][V] = {};
  const Real* row[R];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  weights += first * panel<Real>;
  for (int64_t k = first; k < last; ++k, weights += panel<Real>) {
    // All weights of k before any factor: with factors outermost, each takes a register only in passing.
    Vec<Real> w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = load(weights + v / 2 * apart + v % 2 * lanes<Real>);
    for (int p = 0; p < P; ++p) __builtin_prefetch(weights + p * apart + ahead * panel<Real>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<Real> factor = broadcast(row[r][k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += w[v] * factor;
    }
  }

#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Real* to = sums + r * stride + v * lanes<Real>;
      store(to, load(to) + sum[r][v]);
    }
}

// The same for any number of panels.
template <class Real, int R>
void multiply_rows(const Real* const* rows, int64_t K, const Real* weights, int64_t panels, Real* sums) {
  constexpr int P = panels_of(R);
  constexpr int64_t chain = chain_of(R);
  const int64_t apart = K * panel<Real>, stride = panels * panel<Real>;
  for (int64_t first = 0; first < K; first += chain) {
    const int64_t last = K - first < chain ? K : first + chain;
    int64_t p = 0;
    for (; p + P <= panels; p += P)
      multiply<Real, R, P>(rows, first, last, weights + p * apart, apart, sums + p * panel<Real>, stride);
    if constexpr (P > 1)
      for (; p < panels; ++p)
        multiply<Real, R, 1>(rows, first, last, weights + p * apart, apart, sums + p * panel<Real>, stride);
  }
}

template <class Real, int R = tile_rows>
inline void multiply_up_to(int64_t count, const Real* const* rows, int64_t K, const Real* weights,
                           int64_t panels, Real* sums) {
  if (count == R) return multiply_rows<Real, R>(rows, K, weights, panels, sums);
  if constexpr (R > 1) multiply_up_to<Real, R - 1>(count, rows, K, weights, panels, sums);
}

// A register tile's sums and what they are the sums of.
template <class Real>
struct Tile {
  int64_t row, rows;                                             // first and how many, at most tile_rows
  int64_t panel0, panels;                                        // first and how many
  alignas(64) Real sums[tile_rows * gate_panels * panel<Real>];  // [rows, panels * panel]

  Real* at(int64_t r, int64_t p) { return sums + (r * panels + p) * panel<Real>; }

  // sums += rows [K] times packed weights; `of` finds each row's [K].
  template <class Of>
  void add_product(int64_t K, const Real* packed, Of of) {
    const Real* factors[tile_rows];
    for (int64_t r = 0; r < rows; ++r) factors[r] = of(row + r);
    multiply_up_to<Real>(rows, factors, K, packed + panel0 * K * panel<Real>, panels, sums);
  }
};

// Visits rows [row0, row1) by panels [first, last) in register tiles of equal height, panels outermost: their
// weights then stay in cache while all rows pass. All tiles but the last have as many panels: at least two,
// for the rows are then fetched once for both, and two hold the gates of a vector of channels.
template <class Real, class Visit>
inline void for_tiles(int64_t row0, int64_t row1, int64_t first, int64_t last, Visit visit) {
  const int64_t count = row1 - row0;
  const int64_t tiles = (count + tile_rows - 1) / tile_rows;
  if (tiles == 0) return;
  const int64_t widest = panels_of(static_cast<int>((count + tiles - 1) / tiles));
  const int64_t block = widest > gate_panels ? widest : gate_panels;
  Tile<Real> tile;
  for (int64_t p = first; p < last; p += block) {
    tile.panel0 = p;
    tile.panels = last - p < block ? last - p : block;
    for (int64_t n = 0; n < tiles; ++n) {
      tile.row = row0 + count * n / tiles;
      tile.rows = row0 + count * (n + 1) / tiles - tile.row;
      visit(tile);
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
