// The GEMM macro-kernel: divides rows × panels into macro-tiles and multiplies them by the micro-kernels.
//
// The caller fills the accumulators of a macro-tile and calls add_product, or calls multiply alone, and
// applies its epilogue, the LSTM cell, before they leave the cache (lstm/forward.h, lstm/backward.h).
#pragma once

#include <limits>

#include "gemm/microkernel.h"
#include "gemm/microkernel_amx.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Accumulator tiles, stacked along rows, that use the same weight panels.
template <class scalar_t>
struct MacroTile {
  AccumulatorTile<scalar_t> tiles[MC_tiles];
  int64_t count;
  int64_t prefetch_panel;  // first panel of the next macro-tile, or of this one if it is the last
  int64_t thread_panels;   // panels of the thread's whole product

  // Makes the next product, of one block, prefetch these bytes into L2, evenly, in place of weights, which
  // are there.
  void stream(const void* from, int64_t bytes) {
    streamed_ = static_cast<const char*>(from), streamed_bytes_ = bytes;
  }

  // Makes the next product fetch this line into L2 for the epilogue, which would wait for it: hardware does
  // not see pieces of rows coming that lie far apart.
  void prefetch(const void* line) {
    if (line_count_ < max_lines) lines_[line_count_++] = static_cast<const char*>(line);
  }

  // accumulators += rows times packed weights; row_ptr(r) is the address of operand row r. With KMajor it is
  // the address of the k-major panel of the tile whose first row is r, and vectors multiply.
  template <bool KMajor = false, class RowPtr>
  void add_product(const PackedWeights<scalar_t>& weights, RowPtr row_ptr) {
    add<KMajor>(Factors(*this, weights, row_ptr), false);
  }

  // accumulators = rows times packed weights.
  template <bool KMajor = false, class RowPtr>
  void multiply(const PackedWeights<scalar_t>& weights, RowPtr row_ptr) {
    add<KMajor>(Factors(*this, weights, row_ptr), true);
  }

  // accumulators = the sum of two products, by one call of the micro-kernel where their depths fit in a
  // block.
  template <class RowPtr, class OtherPtr>
  void multiply(const PackedWeights<scalar_t>& weights, RowPtr row_ptr, const PackedWeights<scalar_t>& others,
                OtherPtr other_ptr) {
    const Factors factors[] = {{*this, weights, row_ptr}, {*this, others, other_ptr}};
    if (others.k_groups == 0 || weights.k_groups + others.k_groups > KC) {
      add<false>(factors[0], true);
      add<false>(factors[1], false);
    } else {
      const FlushSubnormals flush;
      LineQueue lines = take_lines(weights.k_groups + others.k_groups);
      add_block<false>(factors, 2, 0, true, lines);
    }
  }

  // accumulators += a product whose K has parts of equal depth, or = it if they are `fresh`. In part n, A
  // begins at a_at(n, r) for the tile whose first row is r, k-major with `k_major_stride`, and B is b_at(n).
  template <class PartOfA, class PartOfB>
  void add_parts(int parts, int64_t k_major_stride, PartOfA a_at, PartOfB b_at, bool fresh) {
    const FlushSubnormals flush;
    Factors factors[max_block_steps];
    int64_t k_groups = 0;
    for (int n = 0; n < parts; ++n) {
      factors[n] = Factors(*this, b_at(n), [&](int64_t r) { return a_at(n, r); });
      factors[n].k_major_stride = k_major_stride;
      k_groups += factors[n].weights.k_groups;
    }
    LineQueue lines = take_lines(k_groups);
    for (int64_t k = 0; k < factors[0].weights.k_groups; k += factors[0].depth)
      add_block<true>(factors, parts, k, fresh && k == 0, lines);
  }

  void zero() {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t r = 0; r < tiles[i].rows; ++r)
        for (int64_t j = 0; j < tiles[i].panels * NR<scalar_t>; ++j) tiles[i].at(r, 0)[j] = 0;
  }

 private:
  static constexpr int64_t max_lines = 2048;
  const char* lines_[max_lines];
  int64_t line_count_ = 0;
  const char* streamed_ = nullptr;
  int64_t streamed_bytes_ = 0;

  // Takes the lines and divides them among the chains of additions of a sum of so many k-groups.
  LineQueue take_lines(int64_t k_groups) {
    const int64_t lines = line_count_, chain = chain_length(MR, min(k_groups, KC));
    int64_t chains = 0;
    for (int64_t n = 0; n < count && lines > 0 && k_groups > 0; ++n)
      chains += ceil_div(tiles[n].rows, MR) * tiles[n].panels * ceil_div(k_groups, chain);
    line_count_ = 0;
    if (chains == 0) return {};
    const int64_t each = ceil_div(lines, chains), bursts = ceil_div(each, max_line_burst);
    return {lines_, lines_ + lines, ceil_div(each, bursts), ceil_div(chain, bursts)};
  }

  // Packed weights and the operand rows of each tile.
  struct Factors {
    PackedWeights<scalar_t> weights;
    int64_t depth;  // of a block
    const scalar_t* rows[MC_tiles][tile_rows<scalar_t>];
    int64_t k_major_stride = 0;  // as in Product; 0: that of a packed panel

    Factors() = default;

    template <class RowPtr>
    Factors(const MacroTile& to, const PackedWeights<scalar_t>& packed, RowPtr row_ptr)
        : weights(packed), depth(block_depth(packed.k_groups)) {
      for (int64_t n = 0; n < to.count; ++n)
        for (int64_t r = 0; r < to.tiles[n].rows; ++r) rows[n][r] = row_ptr(to.tiles[n].first_row + r);
    }
  };

  bool takes_amx() const { return by_amx<scalar_t> && (count > 1 || tiles[0].rows >= amx_min_rows); }

  template <bool KMajor>
  void add(const Factors& factors, bool fresh) {
    const FlushSubnormals flush;
    LineQueue lines = take_lines(factors.weights.k_groups);
    if (fresh && factors.weights.k_groups == 0) zero();
    for (int64_t k = 0; k < factors.weights.k_groups; k += factors.depth)
      add_block<KMajor>(&factors, 1, k, fresh && k == 0, lines);
    streamed_bytes_ = 0;
  }

  // Adds the products of a block, k-groups [k, k + depth) of each. By vectors a tile as tall as AMX takes is
  // more than MR rows, and is divided into chunks.
  template <bool KMajor>
  void add_block(const Factors* factors, int products, int64_t k, bool fresh, LineQueue& lines) {
#ifdef LSTM_FUSED_AMX
    if constexpr (!KMajor && by_amx<scalar_t>)
      if (takes_amx()) return add_block_by_amx(factors, products, k, fresh);
#endif
    for (int64_t n = 0; n < count; ++n) {
      AccumulatorTile<scalar_t>& tile = tiles[n];
      const int64_t chunks = ceil_div(tile.rows, MR);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t row = tile.rows * chunk / chunks, chunk_rows = tile.rows * (chunk + 1) / chunks - row;
        Product<scalar_t> sum[max_block_steps];
        for (int i = 0; i < products; ++i)
          sum[i] = product(factors[i], n, row, k, n * chunks + chunk, count * chunks);
        multiply_rows<scalar_t, KMajor>(chunk_rows, sum, products, tile.vectors, tile.at(row, 0), tile.stride,
                                        fresh, lines);
      }
    }
  }

  // One product of a block, of rows of the n-th tile from `row` on. Meanwhile prefetches a share of what
  // comes next: this tile's next block of weights or the next macro-tile's first, or what is streamed.
  Product<scalar_t> product(const Factors& factors, int64_t n, int64_t row, int64_t k, int64_t share,
                            int64_t shares) const {
    const AccumulatorTile<scalar_t>& tile = tiles[n];
    const PackedWeights<scalar_t>& weights = factors.weights;
    constexpr int64_t size = sizeof(scalar_t), group = k_pack<scalar_t> * NR<scalar_t>;
    const int64_t k_end = min(weights.k_groups, k + factors.depth);
    const char* prefetch;
    int64_t bytes, stride;
    if (streamed_bytes_ > 0) {
      stride = streamed_bytes_ / (shares * tile.panels);  // during one panel of a tile
      bytes = stride / (k_end - k);
      prefetch = streamed_ + share * tile.panels * stride;
    } else {
      const bool last_block = k_end == weights.k_groups;
      const bool in_l2 =
          thread_panels * weights.k_groups * group * size <= l2_resident_bytes && has_few_rows(tile.rows);
      const int64_t next_k = last_block ? 0 : k_end;
      const int64_t next = in_l2 || !weights.packed() ? 0 : min(weights.k_groups - next_k, factors.depth);
      const scalar_t* from = weights.at(last_block ? prefetch_panel : tile.first_panel, next_k);
      stride = weights.panel_stride * size;
      bytes = k_end > k ? group * size * next / ((k_end - k) * shares) : 0;
      prefetch = reinterpret_cast<const char*>(from) + (k_end - k) * share * bytes;
    }
    const int64_t k_major_stride =
        factors.k_major_stride > 0 ? factors.k_major_stride : tile.rows * k_pack<scalar_t>;
    return {factors.rows[n] + row, k_major_stride,   k,        k_end, weights.at(tile.first_panel, 0),
            weights.panel_stride,  weights.k_stride, prefetch, bytes, stride};
  }

#ifdef LSTM_FUSED_AMX
  AmxTileConfig config_;

  // The same by AMX. Four independent accumulators hide the latency of a tile multiplication: two register
  // tiles by one panel, where each load of weights is used twice, or an odd last tile by two panels. Fetches
  // no lines for the epilogue: backward passes took as long with them.
  void add_block_by_amx(const Factors* factors, int products, int64_t k, bool fresh) {
    alignas(64) BFloat16 copies[2][2 * amx_tile_rows * (KC + 2 * amx_tile_k_groups)];
    for (int64_t n = 0; n < count; n += 2) {
      const bool two_tiles = n + 1 < count;
      AccumulatorTile<scalar_t>&tile = tiles[n], &other = tiles[two_tiles ? n + 1 : n];
      config_.set(tile.rows, other.rows);
      AmxProduct sum[2];
      int64_t copied = 0;
      for (int i = 0; i < products; ++i) {
        const PackedWeights<scalar_t>& weights = factors[i].weights;
        const int64_t kc = min(weights.panel_stride / weights.k_stride - k, factors[i].depth);
        const auto rows = [&](int64_t t) {
          return amx_rows(factors[i].rows[n + t], tiles[n + t].rows, k, kc, copies[t] + copied);
        };
        sum[i] = {{rows(0), two_tiles ? rows(1) : AmxRows{}}, kc, nullptr, weights.panel_stride};
        copied += 2 * amx_tile_rows * kc;
      }
      for (int64_t p = 0; p < tile.panels;) {
        const bool two_panels = !two_tiles && p + 1 < tile.panels;
        for (int i = 0; i < products; ++i) sum[i].weights = factors[i].weights.at(tile.first_panel + p, k);
        const auto multiply = two_tiles    ? microkernel_amx<2, 1>
                              : two_panels ? microkernel_amx<1, 2>
                                           : microkernel_amx<1, 1>;
        multiply(sum, products, tile.at(0, p), two_panels ? tile.at(0, p + 1) : other.at(0, p), tile.stride,
                 fresh);
        p += two_panels ? 2 : 1;
      }
    }
  }
#endif
};

// Panels [begin, end) of packed weights of `vectors` vectors of channels, the last of which may be half a
// panel.
struct Panels {
  int64_t begin, end;
  int64_t vectors = std::numeric_limits<int64_t>::max();
};

// Visits rows [row0, row1) × panels by macro-tiles. Rows are divided into tiles of
// equal height, at most tile_rows. Panels are the outer loop: their weights stay in cache while all rows
// pass. With AMX, which loads the rows again for each panel, a macro-tile has as many panels as fit.
// `reverse_panels`, every other step, visits panels from last to first, to begin with those that the step
// before has left in the cache.
template <class scalar_t, class Visit>
inline void for_macrotiles(int64_t row0, int64_t row1, const Panels& panels, bool reverse_panels,
                           Visit visit) {
  const int64_t rows = row1 - row0;
  const int64_t tiles = ceil_div(rows, tile_rows<scalar_t>);
  if (tiles == 0) return;
  const int64_t width = panels_for<scalar_t>(static_cast<int>((rows + tiles - 1) / tiles));
  const int64_t nc = by_amx<scalar_t> ? max_nc : width > min_nc ? width : min_nc;
  const int64_t m_blocks = (tiles + MC_tiles - 1) / MC_tiles;
  const int64_t n_blocks = ceil_div(panels.end - panels.begin, nc);
  const auto panel_at = [&](int64_t j) {
    return panels.begin + (reverse_panels ? n_blocks - 1 - j : j) * nc;
  };
  MacroTile<scalar_t> macrotile;
  macrotile.thread_panels = panels.end - panels.begin;
  for (int64_t j = 0; j < n_blocks; ++j) {
    const int64_t p = panel_at(j);
    for (int64_t i = 0; i < m_blocks; ++i) {
      const int64_t begin = tiles * i / m_blocks, end = tiles * (i + 1) / m_blocks;
      macrotile.count = end - begin;
      macrotile.prefetch_panel = panel_at(min(i + 1 < m_blocks ? j : j + 1, n_blocks - 1));
      for (int64_t t = begin; t < end; ++t) {
        AccumulatorTile<scalar_t>& tile = macrotile.tiles[t - begin];
        tile.first_row = row0 + rows * t / tiles;
        tile.rows = row0 + rows * (t + 1) / tiles - tile.first_row;
        tile.first_panel = p;
        tile.panels = min(panels.end - p, nc);
        tile.vectors = min(2 * tile.panels, panels.vectors - 2 * p);
        tile.acc = tile.own, tile.stride = tile.panels * NR<scalar_t>;
      }
      visit(macrotile);
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
