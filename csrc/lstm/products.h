// The products after the backward recurrence: dx = dxw W_ih, dW_ih = dxwᵀ x and dW_hh = dhwᵀ h_{t-1}.
//
// All three run over blocks of KC rows, valid steps of the batch. In the weight gradients the rows are the
// depth of the GEMM: all threads share packed panels of x and h_{t-1}, and each packs its channels of da, as
// k-major panels or, for AMX, transposed into operand rows. In dx the rows are the rows of the GEMM, and W_ih
// is packed once.
#pragma once

#include "gemm/macrokernel.h"
#include "gemm/outer.h"
#include "gemm/pack.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// h_{t-1} of a row of the batch at a valid step.
template <class scalar_t>
const scalar_t* previous_h(const Products<scalar_t>& args, int64_t t, int64_t b) {
  const Sequence& q = args.sequence;
  return t == q.first(b) ? args.h0 + b * args.P : args.y.at(q.previous(t), b);
}

// Visits the valid steps of all rows in memory order of da.
class ValidSteps {
 public:
  explicit ValidSteps(const Sequence& sequence) : q_(sequence) {}

  // Lists the factors of the next `count` valid steps.
  template <class scalar_t>
  void list(const Products<scalar_t>& args, int64_t count, ProductRow<scalar_t>* rows) {
    for (int64_t k = 0; k < count; ++b_) {
      if (b_ == q_.B) b_ = 0, ++n_;
      const int64_t t = args.da.data ? q_.step(n_) : n_, tb = t * q_.B + b_;
      if (t >= q_.length(b_)) continue;
      const scalar_t* dxw = args.da.data ? args.da.row(n_, b_) : args.dxw + tb * args.M;
      const scalar_t* dhw = args.da.data ? dxw : args.dhw + tb * args.M;
      rows[k++] = {dxw, dhw, args.dweight_ih ? args.x.at(t, b_) : nullptr,
                   args.dweight_hh ? previous_h(args, t, b_) : nullptr,
                   args.dx ? args.dx + tb * args.I : nullptr};
    }
  }

 private:
  const Sequence& q_;
  int64_t n_ = 0, b_ = 0;
};

// Packs this thread's share of W_ih, for dx.
template <class scalar_t>
void pack_weight_ih(const Products<scalar_t>& args, const Slice& all) {
  const int64_t panels = ceil_div(args.I, NR<scalar_t>);
  if (args.dx && args.packs)
    pack_channels(args.weight_ih, 1, args.I, args.I, args.M, all.begin(panels), all.end(panels),
                  args.packed_ih);
}

// dx of `count` rows: dxw, or its copy in operand rows, times W_ih.
template <class scalar_t>
void multiply_dx(const Products<scalar_t>& args, const ProductRow<scalar_t>* rows, int64_t count,
                 int64_t first_operand_row) {
  OperandBuffer<scalar_t> operand = args.dxw_operand;
  operand.K = args.M;
  for (int64_t r = 0; r < count && operand.data; ++r) {
    scalar_t* to = operand.row(0, first_operand_row + r);
    __builtin_memcpy(to, rows[r].dxw, static_cast<size_t>(args.M) * sizeof(scalar_t));
    operand.clear_padding(0, first_operand_row + r);
  }
  const int64_t panels = ceil_div(args.I, NR<scalar_t>);
  // Hardware does not prefetch rows of da in time, because a tile reads MR of them at once: a tile's product
  // prefetches the next tile's.
  const int64_t stride = args.da.data ? args.da.stride() : args.M,
                row_bytes = stride * static_cast<int64_t>(sizeof(scalar_t));
  const bool streams = !operand.data && args.packs && args.M <= KC && !has_few_rows(count) &&
                       panels * NR<scalar_t> * row_bytes <= l2_resident_bytes &&
                       rows[count - 1].dxw == rows[0].dxw + (count - 1) * stride;
  for_macrotiles<scalar_t>(
      0, count, {0, panels, ceil_div(args.I, lanes<scalar_t>)}, false, [&](auto& macrotile) {
        if (streams)
          macrotile.stream(rows[0].dxw + macrotile.tiles[0].rows * stride,
                           macrotile.tiles[0].first_panel == 0 ? count * row_bytes : 0);
        macrotile.multiply(
            args.packs ? packed_for(operand, args.packed_ih) : unpacked(args.weight_ih, args.M, args.I),
            [&](int64_t r) { return operand.data ? operand.row(0, first_operand_row + r) : rows[r].dxw; });
        for (int64_t i = 0; i < macrotile.count; ++i) {
          AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
          for (int64_t r = 0; r < tile.rows; ++r)
            for (int64_t j = tile.first_panel * NR<scalar_t>, v = 0; v < 2 * tile.panels && j < args.I;
                 ++v, j += lanes<scalar_t>)
              store(rows[tile.first_row + r].dx + j, load(tile.at(r, 0) + v * lanes<scalar_t>), args.I - j);
        }
      });
}

// Packs channels [m, m + count) of da, of K rows, as operand rows for AMX: VNNI pairs along K, which then
// move as floats do.
template <class DaAt>
void transpose_da(DaAt da, int64_t m, int64_t count, int64_t K, const OperandBuffer<BFloat16>& operand,
                  int64_t first_operand_row) {
  constexpr int64_t L = lanes<float>, depth = 2 * L;
  for (int64_t k = 0; k < padded_k<BFloat16>(K); k += depth) {
    // Hardware does not prefetch these pieces of rows, because they are M apart.
    for (int64_t next = k + depth; next < min(k + 2 * depth, K); ++next)
      for (int64_t j = 0; j < count; j += line_elements<BFloat16>) __builtin_prefetch(da(next) + m + j);
    for (int64_t r = 0; r < count; r += L) {
      const auto load_da = [&](int64_t at) {
        return at < K ? load(da(at) + m + r, count - r) : Vec<BFloat16>{};
      };
      Vec<float> pairs[L];
      for (int64_t n = 0; n < L; ++n)
        pairs[n] = (Vec<float>)vnni_pairs(load_da(k + 2 * n), load_da(k + 2 * n + 1));
      transpose<float>(pairs);
      for (int64_t n = 0; n < min(L, count - r); ++n)
        __builtin_memcpy(operand.row(0, first_operand_row + r + n) + k, pairs + n, sizeof *pairs);
    }
  }
}

// Packs channels [m, m + count) of da [K, M] as k-major panels, one for each tile of for_macrotiles, at its
// first row.
template <class scalar_t, class DaAt>
void pack_da(DaAt da, int64_t m, int64_t count, int64_t M, int64_t K, const OperandBuffer<scalar_t>& operand,
             int64_t first_operand_row) {
  const int64_t tiles = ceil_div(count, MR), padded = ceil_div(K, k_pack<scalar_t>) * k_pack<scalar_t>;
  int64_t first[MC_tiles + 1];
  scalar_t* panel[MC_tiles];
  for (int64_t t = 0; t <= tiles; ++t) first[t] = count * t / tiles;
  for (int64_t t = 0; t < tiles; ++t) panel[t] = operand.row(0, first_operand_row + first[t]);
  constexpr int64_t block = pack_da_k_groups * k_pack<scalar_t>;
  for (int64_t k0 = 0; k0 < K; k0 += block) {
    const int64_t k1 = min(k0 + block, K);
    // Hardware does not prefetch these pieces of rows, because they are M apart.
    for (int64_t k = k1; k < min(k1 + block, K); ++k)
      for (int64_t j = 0; j < count; j += line_elements<scalar_t>) __builtin_prefetch(da(k) + m + j);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t width = first[t + 1] - first[t], column = m + first[t];
      // By whole vectors: a store reaches into the next row, which is packed later. Those of the last row but
      // one end within the last, whose own may not reach beyond the panel.
      constexpr int64_t L = lanes<scalar_t>;
      if (k_pack<scalar_t> == 1 && width <= L && L <= 2 * width && column + L <= M) {
        scalar_t* to = panel[t] + k0 * width;
        for (int64_t k = k0; k < min(k1, K - 1); ++k, to += width) store(to, load(da(k) + column));
        if (k1 == K) store(to, load(da(K - 1) + column), width);
        continue;
      }
      for (int64_t k = k0; k < k1; k += k_pack<scalar_t>)
        pack_k_major(da(k) + column, k + 1 < K ? da(k + 1) + column : nullptr, width, M - column,
                     (padded - k) / k_pack<scalar_t> * width, panel[t] + k * width);
    }
  }
}

// One weight's share of the panels, and its gradient.
template <class scalar_t>
struct WeightGradient {
  int64_t first_panel, panels, N;
  acc_t<scalar_t>* sums;  // [M, N], or null: the depth has one block
  scalar_t* gradient;     // [M, N], may be sums
  int64_t stride = N;     // leading dimension of sums, N unless every tile lies in them
};

// Accumulates in the sums themselves, if the tile lies in them with all its columns.
template <class scalar_t>
bool place_in_sums(AccumulatorTile<scalar_t>& tile, int64_t m, const WeightGradient<scalar_t>& weight) {
  const int64_t j = (tile.first_panel - weight.first_panel) * NR<scalar_t>;
  if (!weight.sums || j + tile.panels * NR<scalar_t> > weight.stride) return false;
  tile.acc = weight.sums + (m + tile.first_row) * weight.stride + j, tile.stride = weight.stride;
  return true;
}

// Visits the vectors of a tile in [M, N]: visit(accumulators, index of the first element, left columns).
template <class scalar_t, class Visit>
void for_vectors(AccumulatorTile<scalar_t>& tile, int64_t m, const WeightGradient<scalar_t>& weight,
                 Visit visit) {
  const int64_t j0 = (tile.first_panel - weight.first_panel) * NR<scalar_t>;
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t v = 0, j = j0; v < 2 * tile.panels && j < weight.N; ++v, j += lanes<scalar_t>)
      visit(tile.at(r, 0) + v * lanes<scalar_t>, (m + tile.first_row + r) * weight.N + j, weight.N - j);
}

// Packs channels [m, m + count) of K rows of da for add_product.
template <class scalar_t, class DaAt>
void pack_da_operand(DaAt da, int64_t m, int64_t count, int64_t M, int64_t K,
                     const OperandBuffer<scalar_t>& operand, int64_t first_operand_row) {
  if constexpr (by_amx<scalar_t>)
    transpose_da(da, m, count, K, operand, first_operand_row);
  else
    pack_da(da, m, count, M, K, operand, first_operand_row);
}

// Adds products with rows [m, m + count) of da to a weight's sums, or stores them if they are the first;
// after the last the sums are its gradient. multiply(macrotile, first) is to do it for a macro-tile.
template <class scalar_t, class Multiply>
void accumulate(const WeightGradient<scalar_t>& weight, int64_t m, int64_t count, bool first, bool last,
                Multiply multiply) {
  const Panels panels{weight.first_panel, weight.first_panel + weight.panels,
                      2 * weight.first_panel + ceil_div(weight.N, lanes<scalar_t>)};
  for_macrotiles<scalar_t>(0, count, panels, false, [&](auto& macrotile) {
    bool in_place = true;
    for (int64_t i = 0; i < macrotile.count; ++i)
      in_place = place_in_sums(macrotile.tiles[i], m, weight) && in_place;
    for (int64_t i = 0; i < macrotile.count && !first && !in_place; ++i)
      for_vectors(macrotile.tiles[i], m, weight, [&](acc_t<scalar_t>* acc, int64_t at, int64_t left) {
        store(acc, load(weight.sums + at, left));
      });
    multiply(macrotile, first);
    if (in_place && !(last && static_cast<void*>(weight.sums) != weight.gradient)) return;
    for (int64_t i = 0; i < macrotile.count; ++i)
      for_vectors(macrotile.tiles[i], m, weight, [&](acc_t<scalar_t>* acc, int64_t at, int64_t left) {
        if (last)
          store(weight.gradient + at, load(acc), left);
        else
          store(weight.sums + at, load(acc), left);
      });
  });
}

// The same of da in operand rows and the other factor in packed panels.
template <class scalar_t>
void accumulate(const WeightGradient<scalar_t>& weight, int64_t m, int64_t count, bool first, bool last,
                const OperandBuffer<scalar_t>& operand, int64_t first_operand_row, const scalar_t* panels) {
  const PackedWeights<scalar_t> packed = packed_for(operand, panels);
  const auto row = [&](int64_t r) { return operand.row(0, first_operand_row + r); };
  accumulate(weight, m, count, first, last, [&](auto& macrotile, bool fresh) {
    if constexpr (by_amx<scalar_t>)
      fresh ? macrotile.multiply(packed, row) : macrotile.add_product(packed, row);
    else
      fresh ? macrotile.template multiply<true>(packed, row)
            : macrotile.template add_product<true>(packed, row);
  });
}

template <class scalar_t>
void products(const Products<scalar_t>& args, const Team& team) {
  const Sequence& q = args.sequence;
  const Slice all = whole(team);
  const int64_t i_panels = args.dweight_ih ? ceil_div(args.I, NR<scalar_t>) : 0;
  const int64_t p_panels = args.dweight_hh ? ceil_div(args.P, NR<scalar_t>) : 0;
  const WeightGradient<scalar_t> ih{0, i_panels, args.I, args.sums_ih, args.dweight_ih},
      hh{i_panels, p_panels, args.P, args.sums_hh, args.dweight_hh};
  const int64_t vectors = ceil_div(args.M, lanes<scalar_t>);
  const int64_t m0 = all.begin(vectors) * lanes<scalar_t>,
                m1 = min(all.end(vectors) * lanes<scalar_t>, args.M);
  ProductRow<scalar_t>* rows = args.rows + team.rank * args.KC;

  int64_t valid = q.lengths ? 0 : q.T * q.B;
  if (q.lengths)
    for (int64_t b = 0; b < q.B; ++b) valid += q.lengths[b];
  if (args.dx) {
    pack_weight_ih(args, all);
    if (q.lengths)
      for (int64_t tb = all.begin(q.T * q.B); tb < all.end(q.T * q.B); ++tb)
        if (tb / q.B >= q.lengths[tb % q.B])
          for (int64_t j = 0; j < args.I; ++j) args.dx[tb * args.I + j] = {};
    all.sync();  // packed_ih
  }

  ValidSteps steps(q);
  const int64_t blocks = valid > 0 ? ceil_div(valid, args.KC) : 1;
  for (int64_t n = 0; n < blocks; ++n) {
    const int64_t K = valid * (n + 1) / blocks - valid * n / blocks;
    steps.list(args, K, rows);
    for (int64_t r = all.begin(K); args.dx && r < all.end(K); r += args.rows_at_once)
      multiply_dx(args, rows + r, min(args.rows_at_once, all.end(K) - r), team.rank * args.rows_at_once);
    if (i_panels + p_panels == 0) continue;
    if constexpr (std::is_same_v<scalar_t, acc_t<scalar_t>>)
      if (args.outer_products) {  // one block
        const auto da = [&](int64_t k) { return rows[k].dxw; };
        const auto da_of_h = [&](int64_t k) { return rows[k].dhw; };
        if (args.dweight_ih)
          add_outer_products(da, [&](int64_t k) { return rows[k].x; }, K, m0, m1, args.I, args.dweight_ih);
        if (args.dweight_hh)
          add_outer_products(
              da_of_h, [&](int64_t k) { return rows[k].h; }, K, m0, m1, args.P, args.dweight_hh);
        return;
      }

    OperandBuffer<scalar_t> operand = args.da_operand;
    operand.K = K;
    scalar_t* packed_rows = args.packed_rows[n & 1];
    constexpr int64_t depth = k_pack<BFloat16> * amx_tile_k_groups;
    const int64_t padded = padded_k<scalar_t>(K), parts = ceil_div(padded, depth);
    const int64_t first = all.begin(parts) * depth, last = min(all.end(parts) * depth, padded);
    pack_rows([&](int64_t k) { return rows[k].x; }, args.dweight_ih ? args.I : 0, first, last, K,
              packed_rows);
    pack_rows([&](int64_t k) { return rows[k].h; }, args.dweight_hh ? args.P : 0, first, last, K,
              packed_rows + i_panels * padded * NR<scalar_t>);
    all.sync();  // packed_rows
    const bool one_da = args.dhw == args.dxw;
    for (int64_t m = m0; m < m1; m += args.rows_at_once) {
      const int64_t count = min(args.rows_at_once, m1 - m), first_row = team.rank * args.rows_at_once;
      const auto pack = [&](auto da) { pack_da_operand(da, m, count, args.M, K, operand, first_row); };
      const auto multiply = [&](const WeightGradient<scalar_t>& weight) {
        accumulate(weight, m, count, n == 0, n + 1 == blocks, operand, first_row, packed_rows);
      };
      if (one_da || args.dweight_ih) pack([&](int64_t k) { return rows[k].dxw; });
      if (args.dweight_ih) multiply(ih);
      if (!one_da && args.dweight_hh) pack([&](int64_t k) { return rows[k].dhw; });
      if (args.dweight_hh) multiply(hh);
    }
    // packed_rows: read by all threads, before the next block's are packed; with two, the other sync does.
    if (n + 1 < blocks && args.packed_rows[0] == args.packed_rows[1]) all.sync();
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
