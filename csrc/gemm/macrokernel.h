// Rows by packed weights, tile by tile: what the sequence loops are written with.
#pragma once

#include "gemm/microkernel_amx.h"
#include "gemm/microkernel.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Tiles of the same panels, one below the other.
template <class Number>
struct Column {
  static constexpr int most = 8;

  Tile<Number> tiles[most];
  int64_t count;
  int64_t next_panel;  // which panels come after these; the last ones again, where the next sweep begins
  int64_t of_panels;   // how many the thread passes over

  // sums += rows times packed weights; `of` finds each row's factors.
  template <class Of>
  void add_product(const Packed<Number>& weights, Of of) {
    const FlushSubnormals flush;
    const Number* factors[most][most_rows<Number>];
    for (int64_t n = 0; n < count; ++n)
      for (int64_t r = 0; r < tiles[n].rows; ++r) factors[n][r] = of(tiles[n].row + r);
#ifdef LSTM_FUSED_AMX
    if constexpr (Unit<Number>::numbers == 2)
      if (count > 1 || tiles[0].rows >= least_matrix_rows) return add_matrices<1>(weights, factors);
    if constexpr (std::is_same_v<Number, float>)
      if (weights.in_parts) return add_matrices<float_parts>(weights, factors);
#endif
    const int64_t bytes = of_panels * weights.apart * static_cast<int64_t>(sizeof(Number));
    for (int64_t first = 0; first < weights.K; first += block) {
      const int64_t last = weights.K - first < block ? weights.K : first + block;
      const bool done = last == weights.K;
      const int64_t k = done ? 0 : last, rest = weights.K - k;
      for (int64_t n = 0; n < count; ++n) {
        Tile<Number>& tile = tiles[n];
        const bool kept = bytes <= kept_bytes && memory_binds(tile.rows);
        const int64_t units = kept ? 0 : rest < block ? rest : block;
        // A matrix unit's tile is higher than vectors take.
        const int64_t lots = ceil_div(tile.rows, vector_rows);
        for (int64_t lot = 0; lot < lots; ++lot) {
          const int64_t row = tile.rows * lot / lots, rows = tile.rows * (lot + 1) / lots - row;
          const Next next{done ? next_panel : tile.panel0, k, units, n * lots + lot, count * lots};
          multiply_up_to<Number>(rows, factors[n] + row, first, last, weights, tile.panel0, tile.panels,
                                 tile.at(row, 0), next);
        }
      }
    }
  }

#ifdef LSTM_FUSED_AMX
 private:
  MatrixShape shape_;

  // The same by the matrix unit, two tiles at a time, so that the weights are fetched once for both, or of
  // one tile two panels: there are four sums to add to, for each is ready only four times as late.
  template <int Parts>
  void add_matrices(const Packed<Number>& weights, const Number* (*factors)[most_rows<Number>]) {
    constexpr int64_t unit = Parts * 2 * panel<BFloat16>, most_units = Parts == 1 ? block : long_block;
    const int64_t longest = Parts == 1 || weights.K >= long_sum ? most_units : short_block;
    const int64_t apart = weights.apart * static_cast<int64_t>(sizeof(Number) / sizeof(BFloat16));
    const int64_t units = apart / unit, part = row_stride<BFloat16>(weights.K);
    alignas(64) BFloat16 copies[2][Parts * matrix_units * most_units * 2];
    for (int64_t k = 0; k < units; k += longest) {
      const int64_t some = min(units - k, longest);
      for (int64_t n = 0; n < count; n += 2) {
        const bool two = n + 1 < count;
        Tile<Number>&tile = tiles[n], &other = tiles[two ? n + 1 : n];
        MatrixRows rows = lot<Parts>(factors[n], tile.rows, k, some, part, copies[0]), others = rows;
        if (two) others = lot<Parts>(factors[n + 1], other.rows, k, some, part, copies[1]);
        shape_.set(tile.rows, other.rows, Parts == 1 || two ? matrix_units : tile.rows);
        const int64_t stride = tile.panels * panel<Number>;
        for (int64_t p = 0; p < tile.panels;) {
          const bool wide = !two && p + 1 < tile.panels;
          rows.sums = tile.at(0, p), others.sums = wide ? tile.at(0, p + 1) : other.at(0, p);
          const auto multiply = two    ? multiply_matrices<Parts, 2, 1>
                                : wide ? multiply_matrices<Parts, 1, 2>
                                       : multiply_matrices<Parts, 1, 1>;
          const auto* from = reinterpret_cast<const BFloat16*>(weights.at(tile.panel0 + p, 0));
          multiply(rows, others, some, from + k * unit, apart, stride);
          p += wide ? 2 : 1;
        }
      }
    }
  }
#endif
};

template <class Number>
inline void zero(Column<Number>& column) {
  for (int64_t i = 0; i < column.count; ++i) {
    Tile<Number>& tile = column.tiles[i];
    for (int64_t n = 0; n < tile.rows * tile.panels * panel<Number>; ++n) tile.sums[n] = 0;
  }
}

// Visits rows [row0, row1) by panels [first, last) in register tiles of equal height, at most `tallest`,
// panels outermost: their weights then stay in cache while all rows pass. All tiles but the last have as many
// panels: at least two, for the rows are then fetched once for both, and two hold the gates of a vector of
// channels; where the matrix unit takes the rows, which it fetches anew for each panel, as many as there may
// be. Every other time `back`, from the last panels to the first: of weights that the cache cannot hold as a
// whole, those that came last are still there.
template <class Number, class Visit>
inline void for_columns(int64_t tallest, int64_t row0, int64_t row1, int64_t first, int64_t last, bool back,
                        Visit visit) {
  const int64_t rows = row1 - row0;
  const int64_t tiles = (rows + tallest - 1) / tallest;
  if (tiles == 0) return;
  const int64_t widest = panels_of(static_cast<int>((rows + tiles - 1) / tiles));
  const int64_t wide = tallest > vector_rows ? most_panels : widest > gate_panels ? widest : gate_panels;
  const int64_t columns = (tiles + Column<Number>::most - 1) / Column<Number>::most;
  const int64_t across = ceil_div(last - first, wide);
  const auto panel_at = [&](int64_t m) { return first + (back ? across - 1 - m : m) * wide; };
  Column<Number> column;
  column.of_panels = last - first;
  for (int64_t m = 0; m < across; ++m) {
    const int64_t p = panel_at(m);
    for (int64_t n = 0; n < columns; ++n) {
      const int64_t begin = tiles * n / columns, end = tiles * (n + 1) / columns;
      column.count = end - begin;
      column.next_panel = panel_at(min(n + 1 < columns ? m : m + 1, across - 1));
      for (int64_t t = begin; t < end; ++t) {
        Tile<Number>& tile = column.tiles[t - begin];
        tile.row = row0 + rows * t / tiles;
        tile.rows = row0 + rows * (t + 1) / tiles - tile.row;
        tile.panel0 = p;
        tile.panels = min(last - p, wide);
      }
      visit(column);
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
