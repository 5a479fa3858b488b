// The backward pass: the loop over steps, each of which is the GEMM dh_t = da_{t+1} W_hh with the gradients
// of the cell at step t as its epilogue.
#pragma once

#include <optional>

#include "gemm/macrokernel.h"
#include "gemm/pack.h"
#include "lstm/block_products.h"
#include "lstm/cell.h"
#include "lstm/prefetch.h"
#include "lstm/sums.h"
#include "lstm/variant.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class scalar_t>
void pack(const Backward<scalar_t>& args, const Team& team) {
  const Slice all = whole(team);
  const int64_t p = ceil_div(args.P, NR<scalar_t>), h = ceil_div(args.H, NR<scalar_t>);
  if (args.packs)
    pack_channels(args.weight_hh, 1, args.P, args.P, 4 * args.H, all.begin(p), all.end(p), args.packed_hh);
  if (args.weight_hr)
    pack_channels(args.weight_hr, 1, args.H, args.H, args.P, all.begin(h), all.end(h), args.packed_hr);
  if (args.products) pack_weight_ih(*args.products, all);
  all.sync();  // packed weights, dc_state and padding that other threads have written
}

// Initialises dc with dc_n, and the padding of operand rows.
template <class scalar_t>
void init_state(const Backward<scalar_t>& args, const Slice& s) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    for (int64_t j = s.begin(args.H); j < s.end(args.H); j += lanes<scalar_t>) {
      const int64_t n = min(lanes<scalar_t>, s.end(args.H) - j);
      store(args.dc_state + b * args.H + j, args.dc_n ? load(args.dc_n + b * args.H + j, n) : Vec<scalar_t>{},
            n);
    }
    if (s.rank > 0) continue;
    const bool padded = padded_k<scalar_t>(4 * args.H) > 4 * args.H;
    const int64_t da_slots = padded ? min(args.da_operand.slots, args.sequence.T) : 0;
    for (int64_t slot = 0; slot < da_slots; ++slot) args.da_operand.clear_padding(slot, b);
    for (int64_t slot = 0; slot < 2 && args.weight_hr; ++slot) args.dh_operand.clear_padding(slot, b);
  }
}

// Lists the slice's rows that have a step at t, the n-th: first those with a step after it, then those that
// end there.
struct Count {
  int64_t continuing, all;
};

template <class scalar_t>
Count active_rows(const Backward<scalar_t>& args, const Slice& s, int64_t n, int64_t t, Row<scalar_t>* rows) {
  const Sequence& q = args.sequence;
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < q.length(b) && t != q.last(b)) rows[count++] = {b, nullptr, args.da_operand.row(n + 1, b)};
  const int64_t continuing = count;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < q.length(b) && t == q.last(b)) rows[count++] = {b, nullptr, nullptr};
  return {continuing, count};
}

// Sets dxw and dhw of rows without a step at t to zero.
template <class scalar_t>
void fill_inactive(const Backward<scalar_t>& args, const Slice& s, int64_t t, int64_t j0, int64_t j1) {
  if (!args.dxw && !args.dhw) return;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t >= args.sequence.length(b))
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t j = j0; j < j1; ++j) {
          const int64_t at = ((t * args.sequence.B + b) * 4 + gate) * args.H + j;
          if (args.dxw) args.dxw[at] = {};
          if (args.dhw) args.dhw[at] = {};
        }
}

// accumulators = the gradient of h_t from the steps after t: da_{t+1} W_hh, or dh_n at the end.
template <class scalar_t>
void recurrent_gradient(const Backward<scalar_t>& args, const Row<scalar_t>* rows,
                        MacroTile<scalar_t>& macrotile) {
  if (rows[macrotile.tiles[0].first_row].operand)
    return macrotile.multiply(args.packs ? packed_for(args.da_operand, args.packed_hh)
                                         : unpacked(args.weight_hh, 4 * args.H, args.P),
                              [&](int64_t r) { return rows[r].operand; });
  for (int64_t i = 0; i < macrotile.count; ++i) {
    AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.first_panel * NR<scalar_t> + v * lanes<scalar_t>;
        const bool given = args.dh_n && j < args.P;
        store(
            tile.at(r, 0) + v * lanes<scalar_t>,
            given ? load(args.dh_n + rows[tile.first_row + r].b * args.P + j, args.P - j) : Vec<scalar_t>{});
      }
  }
}

// Stores dh, the accumulators plus dy_t unless this is dh0; to(b) is the address of row b.
template <class scalar_t, class To>
void store_dh(const Backward<scalar_t>& args, const Row<scalar_t>* rows, MacroTile<scalar_t>& macrotile,
              int64_t t, bool with_dy, To to) {
  for (int64_t i = 0; i < macrotile.count; ++i) {
    AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.first_panel * NR<scalar_t> + v * lanes<scalar_t>;
        const int64_t b = rows[tile.first_row + r].b;
        if (j >= args.P) continue;
        Vec<scalar_t> sum = load(tile.at(r, 0) + v * lanes<scalar_t>);
        if (args.variant.any)
          sum = gradient_of_h(args, rows[tile.first_row + r], with_dy ? t : -1, j, sum);
        else if (with_dy && args.dy.data)
          sum += load(args.dy.at(t, b) + j, args.P - j);
        store(to(b) + j, sum, args.P - j);
      }
  }
}

// The epilogue: the backward cell on the accumulators, the gradient of o * tanh(c), plus dy_t if `with_dy`.
// Adds the gradients of bias and peephole to sums [2, 7, width].
template <bool HasVariant, class scalar_t>
void cell_epilogue(const Backward<scalar_t>& args, int64_t n, int64_t t, const Row<scalar_t>* rows,
                   AccumulatorTile<scalar_t>& tile, bool with_dy, double* sums) {
  using Gate = Gates<acc_t<scalar_t>>;
  const int64_t H = args.H, B = args.sequence.B;
  for (int64_t v = 0; v < 2 * tile.panels; ++v) {
    const int64_t j = tile.first_panel * NR<scalar_t> + v * lanes<scalar_t>, left = H - j;
    if (left <= 0) continue;
    const Peephole<acc_t<scalar_t>> peephole(args.peephole, H, j, left);
    Vec<scalar_t> sum[7] = {};
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.first_row + r].b, tb = t * B + b;
      const bool starts = t == args.sequence.first(b);
      const scalar_t* before = starts ? args.c0 + b * H : args.c + (args.sequence.previous(t) * B + b) * H;
      const Gate gates = Gate::from(args.gates + tb * 4 * H, H, j, left);
      Vec<scalar_t> c = load(args.c + tb * H + j, left), dc_zoneout = {};
      const Vec<scalar_t> c_prev = load(before + j, left);
      Vec<scalar_t> dm = load(tile.at(r, 0) + v * lanes<scalar_t>);
      Vec<scalar_t> dc = load(args.dc_state + b * H + j, left);
      if (HasVariant && with_dy)
        dm = gradient_of_h(args, rows[tile.first_row + r], t, j, dm);
      else if (with_dy && args.dy.data)
        dm += load(args.dy.at(t, b) + j, left);
      if (HasVariant && args.variant.zoneout_c.data) {
        const Vec<scalar_t> share = load(args.variant.zoneout_c.at(t, b) + j, left);
        dc_zoneout = share * dc;
        dc *= 1 - share;
        c = clip<acc_t<scalar_t>>(gates.f * c_prev + gates.i * gates.g, args.variant.cell_clip);
      }
      const Gate da =
          cell_backward<HasVariant, scalar_t>(dm, dc, gates, c, c_prev, peephole, args.variant.cell_clip);
      if (HasVariant) dc += dc_zoneout;
      if (args.dxw) da.to(args.dxw + tb * 4 * H, H, j, left, args.streaming_stores);
      scalar_t* next = args.da_operand.row(n, b);
      store(next + j, da.i, left);
      store(next + H + j, da.f, left);
      store(next + 2 * H + j, da.g, left);
      store(next + 3 * H + j, da.o, left);
      store(args.dc_state + b * H + j, dc, left);
      sum[0] += da.i, sum[1] += da.f, sum[2] += da.g, sum[3] += da.o;
      if (peephole.present) sum[4] += da.i * c_prev, sum[5] += da.f * c_prev, sum[6] += da.o * c;
    }
    for (int64_t k = 0; k < 7; ++k) add_to_sums(sums + k * args.width + j, 7 * args.width, sum[k]);
  }
}

template <class scalar_t>
void backward(const Backward<scalar_t>& shared, const Team& team) {
  const FlushSubnormals flush;
  const Slice s = slice(team, shared.sequence.B, shared.min_rows_per_thread, shared.sequence.lengths);
  Backward<scalar_t> args = shared;
  if (args.products) args.da_operand = args.da_operand.part(s.row_begin, s.row_end);
  const Sequence& q = args.sequence;
  const int64_t H = args.H, P = args.P;
  const int64_t h_panels = ceil_div(H, NR<scalar_t>), p_panels = ceil_div(P, NR<scalar_t>);
  const Panels of_h{s.begin(h_panels), s.end(h_panels), ceil_div(H, lanes<scalar_t>)};
  const Panels of_p{s.begin(p_panels), s.end(p_panels), ceil_div(P, lanes<scalar_t>)};
  // This thread's channels of c.
  const int64_t j0 = of_h.begin * NR<scalar_t>, j1 = min(of_h.end * NR<scalar_t>, H);
  Row<scalar_t>* rows = args.rows + team.rank * q.B;
  // Threads that split channels add to those of the first.
  double* sums = args.sums + (team.rank - s.rank) * 14 * args.width;

  for (int64_t j = 0; j < 14 * args.width; ++j) args.sums[team.rank * 14 * args.width + j] = 0;
  init_state(args, s);
  pack(args, team);
  std::optional<BlockProducts<scalar_t>> products;
  if (args.products) products.emplace(args, s, team.rank);

  for (int64_t n = q.T - 1; n >= 0; --n) {
    const int64_t t = q.step(n);
    const Count count = active_rows(args, s, n, t, rows);
    fetch_operands(s, rows, count.continuing, 4 * H);
    // Rows that end here have no product, so they must not share a tile with those that continue.
    const auto for_rows = [&](const Panels& panels, auto visit) {
      for_macrotiles<scalar_t>(0, count.continuing, panels, n & 1, visit);
      for_macrotiles<scalar_t>(count.continuing, count.all, panels, n & 1, visit);
    };
    if (!args.weight_hr) {
      for_rows(of_h, [&](auto& macrotile) {
        if (args.prefetches) prefetch_step(args, rows, macrotile, n, t);
        recurrent_gradient(args, rows, macrotile);
        for (int64_t i = 0; i < macrotile.count; ++i)
          if (args.variant.any)
            cell_epilogue<true>(args, n, t, rows, macrotile.tiles[i], true, sums);
          else
            cell_epilogue<false>(args, n, t, rows, macrotile.tiles[i], true, sums);
      });
    } else {
      for_rows(of_p, [&](auto& macrotile) {
        recurrent_gradient(args, rows, macrotile);
        store_dh(args, rows, macrotile, t, true, [&](int64_t b) { return args.dh_operand.row(n, b); });
      });
      s.sync();  // dh_operand: all channels
      for_macrotiles<scalar_t>(0, count.all, of_h, n & 1, [&](auto& macrotile) {
        macrotile.multiply(packed_for(args.dh_operand, args.packed_hr),
                           [&](int64_t r) { return args.dh_operand.row(n, rows[r].b); });
        for (int64_t i = 0; i < macrotile.count; ++i)
          if (args.variant.any)
            cell_epilogue<true>(args, n, t, rows, macrotile.tiles[i], false, sums);
          else
            cell_epilogue<false>(args, n, t, rows, macrotile.tiles[i], false, sums);
      });
    }
    if (q.lengths) fill_inactive(args, s, t, j0, j1);
    s.sync();  // da_operand: all channels
    if (args.variant.gain_hh) {
      denormalize(args, s, n, t, rows, count.all);
      s.sync();  // da_operand: other threads' rows of the gradient of W_hh h_{t-1}
    }
    const int64_t slots = args.da_operand.slots;
    if (products && n % slots == 0) products->multiply(n, min(n + slots, q.T));
  }

  // dh0 is da W_hh of a row's first step, or dh_n where a row has no steps.
  const auto first_step = [&](int64_t b) { return q.reverse ? q.T - q.length(b) : int64_t{0}; };
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (q.length(b)) rows[count++] = {b, nullptr, args.da_operand.row(first_step(b), b)};
  const int64_t with_steps = count;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (!q.length(b)) rows[count++] = {b, nullptr, nullptr};
  const auto to_dh0 = [&](auto& macrotile) {
    recurrent_gradient(args, rows, macrotile);
    store_dh(args, rows, macrotile, 0, false, [&](int64_t b) { return args.dh0 + b * P; });
  };
  for_macrotiles<scalar_t>(0, with_steps, of_p, false, to_dh0);
  for_macrotiles<scalar_t>(with_steps, count, of_p, false, to_dh0);
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    for (int64_t j = j0; j < j1; j += lanes<scalar_t>)
      store(args.dc0 + b * H + j, load(args.dc_state + b * H + j, j1 - j), j1 - j);
  if (args.streaming_stores) streaming_fence();
  if (products) products->reduce(whole(team));
  reduce_sums(args, team);
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
