// The forward pass: the loop over steps, each of which is a GEMM with the LSTM cell as its epilogue.
#pragma once

#include "gemm/dot.h"
#include "gemm/macrokernel.h"
#include "gemm/pack.h"
#include "lstm/cell.h"
#include "lstm/prefetch.h"
#include "lstm/variant.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class scalar_t>
void pack(const Forward<scalar_t>& args, const Team& team) {
  const Slice all = whole(team);
  const int64_t vectors = ceil_div(args.H, lanes<scalar_t>), panels = ceil_div(args.P, NR<scalar_t>);
  const auto gates = [&](const scalar_t* weight, const OperandBuffer<scalar_t>& operand, scalar_t* to) {
    if (args.packs) pack_gates(weight, args.H, operand.K, all.begin(vectors), all.end(vectors), to);
  };
  if (args.weight_ih) gates(args.weight_ih, args.x_operand, args.packed_ih);
  gates(args.weight_hh, args.h_operand, args.packed_hh);
  if (args.weight_hr)
    pack_channels(args.weight_hr, args.H, 1, args.P, args.H, all.begin(panels), all.end(panels),
                  args.packed_hr);
  all.sync();  // packed weights, c_state and operand rows that other threads have written
}

// Initialises the state of the slice's rows. h0 goes to both slots, because a row may start at any step.
template <class scalar_t>
void init_state(const Forward<scalar_t>& args, const Slice& s) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    for (int64_t j = s.begin(args.H); j < s.end(args.H); j += lanes<scalar_t>) {
      const int64_t n = min(lanes<scalar_t>, s.end(args.H) - j);
      store(args.c_state + b * args.H + j, load(args.c0 + b * args.H + j, n), n);
    }
    for (int64_t slot = 0; slot < 2; ++slot) {
      for (int64_t j = s.begin(args.P); j < s.end(args.P); j += lanes<scalar_t>)
        store_h_operand(args, args.h0 + b * args.P + j, slot, b, j, min(lanes<scalar_t>, s.end(args.P) - j),
                        args.h_operand);
      if (s.rank == 0) {
        args.h_operand.clear_padding(slot, b);
        if (args.weight_hr) args.m_operand.clear_padding(slot, b);
      }
    }
  }
}

// Copies this thread's share of x_t, of `steps` steps from the n-th on, into operand rows.
template <class scalar_t>
void copy_x(const Forward<scalar_t>& args, const Slice& s, int64_t n, int64_t steps) {
  const int64_t rows = s.row_end - s.row_begin;
  for (int64_t r = s.begin(steps * rows); r < s.end(steps * rows); ++r) {
    const int64_t b = s.row_begin + r % rows;
    const scalar_t* x = args.x.at(args.sequence.step(n + r / rows), b);
    scalar_t* to = args.x_operand.row(n + r / rows, b);
    __builtin_memcpy(to, x, static_cast<size_t>(args.I) * sizeof(scalar_t));
    args.x_operand.clear_padding(n + r / rows, b);
  }
}

// accumulators = rows of A times W [4H, K].
template <class scalar_t, class RowPtr>
void multiply_gates(MacroTile<scalar_t>& macrotile, const Forward<scalar_t>& args, const scalar_t* weight,
                    const scalar_t* packed, const OperandBuffer<scalar_t>& operand, RowPtr row_ptr) {
  if (!args.packs)
    return multiply_unpacked_gates(macrotile, args.H, UnpackedProduct{weight, operand.K, row_ptr});
  macrotile.multiply(packed_for(operand, packed), row_ptr);
}

// Stores the accumulators of a tile; to(r) is the address of row r [4H].
template <class scalar_t, class To>
void store_gates(AccumulatorTile<scalar_t>& tile, int64_t H, To to) {
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.first_panel + p) / gate_panels * lanes<scalar_t>;
    for (int64_t r = 0; r < tile.rows; ++r)
      Gates<acc_t<scalar_t>>::from(tile.at(r, p), lanes<scalar_t>, 0, lanes<scalar_t>)
          .to(to(tile.first_row + r), H, j, H - j);
  }
}

// The hoisted input GEMM: W_ih x of this thread's channels and of x_steps steps from the n-th on.
template <class scalar_t>
void compute_xw(const Forward<scalar_t>& args, const Slice& s, int64_t n, int64_t panel_begin,
                int64_t panel_end) {
  const int64_t rows = s.row_end - s.row_begin, steps = min(args.x_steps, args.sequence.T - n);
  copy_x(args, s, n, steps);
  s.sync();  // x_operand: other threads' rows, before the GEMM reads them
  for_macrotiles<scalar_t>(0, steps * rows, {panel_begin, panel_end}, false, [&](auto& macrotile) {
    multiply_gates(macrotile, args, args.weight_ih, args.packed_ih, args.x_operand,
                   [&](int64_t r) { return args.x_operand.row(n + r / rows, s.row_begin + r % rows); });
    for (int64_t i = 0; i < macrotile.count; ++i)
      store_gates(macrotile.tiles[i], args.H, [&](int64_t r) {
        return args.xw + (r / rows * args.sequence.B + s.row_begin + r % rows) * 4 * args.H;
      });
  });
}

// Lists the slice's rows that have a step at t, the n-th; returns their number.
template <class scalar_t>
int64_t active_rows(const Forward<scalar_t>& args, const Slice& s, int64_t n, int64_t t,
                    Row<scalar_t>* rows) {
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < args.sequence.length(b))
      rows[count++] = {b, args.x_steps == 1 ? args.x_operand.row(n, b) : nullptr,
                       args.h_operand.row(n + 1, b)};
  return count;
}

// Fills in rows without a step at t: zero y and gates, and c of the step before.
template <class scalar_t>
void fill_inactive(const Forward<scalar_t>& args, const Slice& s, int64_t t, int64_t j0, int64_t j1,
                   int64_t y0, int64_t y1) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    if (t < args.sequence.length(b)) continue;
    const int64_t tb = t * args.sequence.B + b;
    for (int64_t j = y0; j < y1; ++j) args.y[tb * args.P + j] = {};
    if (!args.c) continue;
    for (int64_t j = j0; j < j1; j += lanes<scalar_t>) {
      store(args.c + tb * args.H + j, load(args.c_state + b * args.H + j, j1 - j), j1 - j);
      Gates<acc_t<scalar_t>>{}.to(args.gates + tb * 4 * args.H, args.H, j, j1 - j, args.streaming_stores);
    }
  }
}

// accumulators = the products of a_t that belong to this step: W_ih x where it is fused, and W_hh h_{t-1}
// unless it is normalised first.
template <class scalar_t>
void multiply_step(const Forward<scalar_t>& args, const Row<scalar_t>* rows, MacroTile<scalar_t>& macrotile) {
  const bool x = args.x_steps == 1, h = !args.variant.gain_hh;
  const auto x_row = [&](int64_t r) { return rows[r].x; };
  const auto h_row = [&](int64_t r) { return rows[r].operand; };
  // h first: its terms are the smaller ones, and a sum's rounding errors grow with what it has come to.
  if (x && h && args.packs)
    macrotile.multiply(packed_for(args.h_operand, args.packed_hh), h_row,
                       packed_for(args.x_operand, args.packed_ih), x_row);
  else if (x && h)
    multiply_unpacked_gates(macrotile, args.H, UnpackedProduct{args.weight_hh, args.h_operand.K, h_row},
                            UnpackedProduct{args.weight_ih, args.x_operand.K, x_row});
  else if (x)
    multiply_gates(macrotile, args, args.weight_ih, args.packed_ih, args.x_operand, x_row);
  else if (h)
    multiply_gates(macrotile, args, args.weight_hh, args.packed_hh, args.h_operand, h_row);
  else
    macrotile.zero();
}

// The other terms of a_t in one row of the batch: bias, and W_ih x unless it is fused.
template <class scalar_t>
[[gnu::always_inline]] inline void add_input(const Forward<scalar_t>& args, int64_t n, int64_t t, int64_t b,
                                             int64_t j, const Gates<acc_t<scalar_t>>& bias,
                                             Gates<acc_t<scalar_t>>& a) {
  using Gate = Gates<acc_t<scalar_t>>;
  const int64_t H = args.H;
  a += bias;
  if (args.x_steps == 0) a += Gate::from(args.x.at(t, b), H, j, H - j);
  if (args.x_steps > 1)
    a += Gate::from(args.xw + ((n & (args.x_steps - 1)) * args.sequence.B + b) * 4 * H, H, j, H - j);
}

// The epilogue: the cell on the accumulators, a_t without bias. Stores o * tanh(c) to the operand, and to y
// [B, H] unless that is null. Two loops over the rows: o * tanh(c) waits for c and would delay the next row's
// gates.
template <bool HasVariant, class scalar_t>
void cell_epilogue(const Forward<scalar_t>& args, int64_t n, int64_t t, const Row<scalar_t>* rows,
                   AccumulatorTile<scalar_t>& tile, scalar_t* y, const OperandBuffer<scalar_t>& operand) {
  using Gate = Gates<acc_t<scalar_t>>;
  constexpr int64_t stride = lanes<scalar_t>;  // from gate to gate in the tile
  const int64_t H = args.H;
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.first_panel + p) / gate_panels * lanes<scalar_t>, left = H - j;
    const Peephole<acc_t<scalar_t>> peephole(args.peephole, H, j, left);
    const Gate bias = args.bias ? Gate::from(args.bias, H, j, left) : Gate{};
    Vec<scalar_t> c[tile_rows<scalar_t>];
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.first_row + r].b, tb = t * args.sequence.B + b;
      Gate gates = Gate::from(tile.at(r, p), stride, 0, stride);
      add_input(args, n, t, b, j, bias, gates);
      Vec<scalar_t> state = c[r] = load(args.c_state + b * H + j, left);
      update_cell<HasVariant, scalar_t>(gates, c[r], peephole, args.variant.cell_clip);
      gates.to(tile.at(r, p), stride, 0, stride);
      state = HasVariant && args.variant.zoneout_c.data
                  ? mix<acc_t<scalar_t>>(load(args.variant.zoneout_c.at(t, b) + j, left), state, c[r])
                  : c[r];
      store(args.c_state + b * H + j, state, left);
      if (args.c) store(args.c + tb * H + j, state, left);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.first_row + r].b, tb = t * args.sequence.B + b;
      Gate gates = Gate::from(tile.at(r, p), stride, 0, stride);
      const Vec<scalar_t> m = finish_cell<scalar_t>(gates, c[r]);
      if (args.c) gates.to(args.gates + tb * 4 * H, H, j, left, args.streaming_stores);
      if (HasVariant && y) {
        store(y + b * H + j, zone_out_h(args, t, b, j, left, m), left);
        store_h_operand(args, y + b * H + j, n, b, j, left, operand);
      } else {
        store(operand.row(n, b) + j, m, left);
        if (y) store(y + b * H + j, m, left);
      }
    }
  }
}

// The projection: y_t = W_hr m.
template <class scalar_t>
void project(const Forward<scalar_t>& args, int64_t n, int64_t t, const Row<scalar_t>* rows,
             MacroTile<scalar_t>& macrotile, scalar_t* y) {
  macrotile.multiply(packed_for(args.m_operand, args.packed_hr),
                     [&](int64_t r) { return args.m_operand.row(n, rows[r].b); });
  for (int64_t i = 0; i < macrotile.count; ++i) {
    AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.first_panel * NR<scalar_t> + v * lanes<scalar_t>;
        const int64_t b = rows[tile.first_row + r].b;
        if (j >= args.P) continue;
        const Vec<scalar_t> h = load(tile.at(r, 0) + v * lanes<scalar_t>);
        if (args.variant.any) {
          store(y + b * args.P + j, zone_out_h(args, t, b, j, args.P - j, h), args.P - j);
          store_h_operand(args, y + b * args.P + j, n, b, j, args.P - j, args.h_operand);
        } else {
          store(y + b * args.P + j, h, args.P - j);
          store(args.h_operand.row(n, b) + j, h, args.P - j);
        }
      }
  }
}

template <class scalar_t>
void forward(const Forward<scalar_t>& args, const Team& team) {
  const auto& [T, B, reverse, lengths] = args.sequence;
  const int64_t H = args.H, P = args.P;
  const Slice s = slice(team, B, args.min_rows_per_thread, lengths);
  const int64_t vectors = ceil_div(H, lanes<scalar_t>), panels = ceil_div(P, NR<scalar_t>);
  const int64_t panel_begin = gate_panels * s.begin(vectors), panel_end = gate_panels * s.end(vectors);
  // This thread's channels of c [j0, j1) and of y [y0, y1).
  const int64_t j0 = s.begin(vectors) * lanes<scalar_t>, j1 = min(s.end(vectors) * lanes<scalar_t>, H);
  const int64_t y0 = args.weight_hr ? s.begin(panels) * NR<scalar_t> : j0;
  const int64_t y1 = args.weight_hr ? min(s.end(panels) * NR<scalar_t>, P) : j1;
  Row<scalar_t>* rows = args.rows + team.rank * B;

  init_state(args, s);
  if (args.x_steps == 1 && T > 0) copy_x(args, s, 0, 1);
  pack(args, team);

  for (int64_t n = 0; n < T; ++n) {
    const int64_t t = args.sequence.step(n);
    const int64_t count = active_rows(args, s, n, t, rows);
    scalar_t* y = args.y + t * B * P;
    fetch_operands(s, rows, count, P);
    if (args.x_steps == 1 && n + 1 < T) copy_x(args, s, n + 1, 1);
    if (args.x_steps > 1 && (n & (args.x_steps - 1)) == 0) compute_xw(args, s, n, panel_begin, panel_end);
    if (args.variant.gain_hh) {
      for_macrotiles<scalar_t>(0, count, {panel_begin, panel_end}, n & 1, [&](auto& macrotile) {
        multiply_gates(macrotile, args, args.weight_hh, args.packed_hh, args.h_operand,
                       [&](int64_t r) { return rows[r].operand; });
        for (int64_t i = 0; i < macrotile.count; ++i)
          store_gates(macrotile.tiles[i], H, [&](int64_t r) { return args.hw + rows[r].b * 4 * H; });
      });
      s.sync();  // hw: all channels, before the mean over a row
      normalize(args, s, rows, count);
      s.sync();  // hw: normalised rows, before each thread reads its channels
    }
    for_macrotiles<scalar_t>(0, count, {panel_begin, panel_end}, n & 1, [&](auto& macrotile) {
      if (args.prefetches) prefetch_step(args, rows, macrotile, t);
      multiply_step(args, rows, macrotile);
      for (int64_t i = 0; i < macrotile.count; ++i) {
        AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
        scalar_t* to = args.weight_hr ? nullptr : y;
        const OperandBuffer<scalar_t>& operand = args.weight_hr ? args.m_operand : args.h_operand;
        if (args.variant.gain_hh) add_normalized(args, rows, tile);
        if (args.variant.any)
          cell_epilogue<true>(args, n, t, rows, tile, to, operand);
        else
          cell_epilogue<false>(args, n, t, rows, tile, to, operand);
      }
    });
    if (lengths) fill_inactive(args, s, t, j0, j1, y0, y1);
    s.sync();  // m_operand with a projection, else h_operand: all channels; x_operand: the next step's rows
    if (args.weight_hr) {
      for_macrotiles<scalar_t>(0, count, {s.begin(panels), s.end(panels), ceil_div(P, lanes<scalar_t>)},
                               n & 1, [&](auto& macrotile) { project(args, n, t, rows, macrotile, y); });
      s.sync();  // h_operand: all channels
    }
  }

  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    const scalar_t* h =
        args.sequence.length(b) ? args.y + (args.sequence.last(b) * B + b) * P : args.h0 + b * P;
    for (int64_t j = y0; j < y1; ++j) args.h_n[b * P + j] = h[j];
    for (int64_t j = j0; j < j1; j += lanes<scalar_t>)
      store(args.c_n + b * H + j, load(args.c_state + b * H + j, j1 - j), j1 - j);
  }
  if (args.streaming_stores) streaming_fence();
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
