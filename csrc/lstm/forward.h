// The forward pass: the loop over steps, each of which is a GEMM with the LSTM cell as its epilogue.
#pragma once

#include "gemm/macrokernel.h"
#include "gemm/pack.h"
#include "lstm/cell.h"
#include "lstm/variant.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class scalar_t>
void pack(const Forward<scalar_t>& f, const Team& team) {
  const Slice all{0, 0, team.rank, team.size, team.everyone};
  const int64_t vectors = ceil_div(f.H, lanes<scalar_t>), panels = ceil_div(f.P, NR<scalar_t>);
  const auto gates = [&](const scalar_t* weight, const OperandBuffer<scalar_t>& operand, scalar_t* to) {
    pack_gates(weight, f.H, operand.K, operand.bf16x3, all.begin(vectors), all.end(vectors), to);
  };
  if (f.weight_ih) gates(f.weight_ih, f.x_operand, f.packed_ih);
  gates(f.weight_hh, f.h_operand, f.packed_hh);
  if (f.weight_hr)
    pack_channels(f.weight_hr, f.H, 1, f.P, f.H, false, all.begin(panels), all.end(panels), f.packed_hr);
  all.sync();  // packed weights, c_state and operand rows that other threads have written
}

// Initialises the state of the slice's rows. h0 goes to both slots, because a row may start at any step.
template <class scalar_t>
void init_state(const Forward<scalar_t>& f, const Slice& s) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    for (int64_t j = s.begin(f.H); j < s.end(f.H); j += lanes<scalar_t>) {
      const int64_t n = min(lanes<scalar_t>, s.end(f.H) - j);
      store(f.c_state + b * f.H + j, load(f.c0 + b * f.H + j, n), n);
    }
    for (int64_t slot = 0; slot < 2; ++slot) {
      for (int64_t j = s.begin(f.P); j < s.end(f.P); j += lanes<scalar_t>)
        store_h_operand(f, f.h0 + b * f.P + j, slot, b, j, min(lanes<scalar_t>, s.end(f.P) - j), f.h_operand);
      if (s.rank == 0) {
        clear_padding(f.h_operand, slot, b);
        if (f.weight_hr) clear_padding(f.m_operand, slot, b);
      }
    }
  }
}

// Copies this thread's share of x_t, of `steps` steps from the n-th on, into operand rows.
template <class scalar_t>
void copy_x(const Forward<scalar_t>& f, const Slice& s, int64_t n, int64_t steps) {
  const int64_t rows = s.row_end - s.row_begin;
  for (int64_t r = s.begin(steps * rows); r < s.end(steps * rows); ++r) {
    const int64_t b = s.row_begin + r % rows;
    const scalar_t* x = f.x.at(f.sequence.step(n + r / rows), b);
    scalar_t* to = f.x_operand.row(n + r / rows, b);
    if (f.x_operand.bf16x3)
      for (int64_t i = 0; i < f.I; i += lanes<scalar_t>)
        store_operand(f.x_operand, to, i, load(x + i, f.I - i), f.I - i);
    else
      __builtin_memcpy(to, x, static_cast<size_t>(f.I) * sizeof(scalar_t));
    clear_padding(f.x_operand, n + r / rows, b);
  }
}

// Stores the accumulators of a tile; to(r) is the address of row r [4H].
template <class scalar_t, class To>
void store_gates(Tile<scalar_t>& tile, int64_t H, To to) {
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.first_panel + p) / gate_panels * lanes<scalar_t>;
    for (int64_t r = 0; r < tile.rows; ++r)
      Gates<acc_t<scalar_t>>::from(tile.at(r, p), lanes<scalar_t>, 0, lanes<scalar_t>)
          .to(to(tile.first_row + r), H, j, H - j);
  }
}

// The hoisted input GEMM: W_ih x of this thread's channels and of x_steps steps from the n-th on.
template <class scalar_t>
void compute_xw(const Forward<scalar_t>& f, const Slice& s, int64_t n, int64_t first_panel,
                int64_t last_panel) {
  const int64_t rows = s.row_end - s.row_begin, steps = min(f.x_steps, f.sequence.T - n);
  copy_x(f, s, n, steps);
  s.sync();  // x_operand: other threads' rows, before the GEMM reads them
  const int64_t tallest = tile_rows<scalar_t>(f.x_operand.bf16x3);
  for_macrotiles<scalar_t>(tallest, 0, steps * rows, first_panel, last_panel, false, [&](auto& macrotile) {
    zero(macrotile);
    macrotile.add_product(packed_for(f.x_operand, f.packed_ih),
                          [&](int64_t r) { return f.x_operand.row(n + r / rows, s.row_begin + r % rows); });
    for (int64_t i = 0; i < macrotile.count; ++i)
      store_gates(macrotile.tiles[i], f.H, [&](int64_t r) {
        return f.xw + (r / rows * f.sequence.B + s.row_begin + r % rows) * 4 * f.H;
      });
  });
}

// Lists the slice's rows that have a step at t, the n-th; returns their number.
template <class scalar_t>
int64_t active_rows(const Forward<scalar_t>& f, const Slice& s, int64_t n, int64_t t, Row<scalar_t>* rows) {
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < f.sequence.length(b))
      rows[count++] = {b, f.x_steps == 1 ? f.x_operand.row(n, b) : nullptr, f.h_operand.row(n + 1, b)};
  return count;
}

// Fills in rows without a step at t: zero y and gates, and c of the step before.
template <class scalar_t>
void fill_inactive(const Forward<scalar_t>& f, const Slice& s, int64_t t, int64_t j0, int64_t j1, int64_t y0,
                   int64_t y1) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    if (t < f.sequence.length(b)) continue;
    const int64_t tb = t * f.sequence.B + b;
    for (int64_t j = y0; j < y1; ++j) f.y[tb * f.P + j] = {};
    if (!f.c) continue;
    for (int64_t j = j0; j < j1; j += lanes<scalar_t>)
      store(f.c + tb * f.H + j, load(f.c_state + b * f.H + j, j1 - j), j1 - j);
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t j = j0; j < j1; ++j) f.gates[(tb * 4 + gate) * f.H + j] = {};
  }
}

// Initialises the accumulators of a_t: bias, plus W_ih x unless it is fused.
template <class scalar_t>
void init_accumulators(const Forward<scalar_t>& f, int64_t n, int64_t t, const Row<scalar_t>* rows,
                       Tile<scalar_t>& tile) {
  const acc_t<scalar_t>* xw = f.x_steps > 1 ? f.xw + (n & (f.x_steps - 1)) * f.sequence.B * 4 * f.H : nullptr;
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.first_panel + p) / gate_panels * lanes<scalar_t>, left = f.H - j;
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t at = gate * f.H + j;
      const Vec<scalar_t> bias = f.bias ? load(f.bias + at, left) : Vec<scalar_t>{};
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t b = rows[tile.first_row + r].b;
        Vec<scalar_t> sum = bias;
        if (f.x_steps == 0) sum += load(f.x.at(t, b) + at, left);
        if (xw) sum += load(xw + b * 4 * f.H + at, left);
        store(tile.at(r, p) + gate * lanes<scalar_t>, sum);
      }
    }
  }
}

// The epilogue: the cell on the accumulators of a_t. Stores o * tanh(c) to the operand, and to y [B, H]
// unless that is null. Two loops over the rows: o * tanh(c) waits for c and would delay the next row's gates.
template <bool HasVariant, class scalar_t>
void cell_epilogue(const Forward<scalar_t>& f, int64_t n, int64_t t, const Row<scalar_t>* rows,
                   Tile<scalar_t>& tile, scalar_t* y, const OperandBuffer<scalar_t>& operand) {
  using Gate = Gates<acc_t<scalar_t>>;
  constexpr int64_t stride = lanes<scalar_t>;  // from gate to gate in the tile
  const int64_t H = f.H;
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.first_panel + p) / gate_panels * lanes<scalar_t>, left = H - j;
    const Peephole<acc_t<scalar_t>> peephole(f.peephole, H, j, left);
    Vec<scalar_t> c[max_tile_rows<scalar_t>];
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.first_row + r].b, tb = t * f.sequence.B + b;
      Gate gates = Gate::from(tile.at(r, p), stride, 0, stride);
      Vec<scalar_t> state = c[r] = load(f.c_state + b * H + j, left);
      update_cell<HasVariant, scalar_t>(gates, c[r], peephole, f.variant.cell_clip);
      gates.to(tile.at(r, p), stride, 0, stride);
      state = HasVariant && f.variant.zoneout_c.data
                  ? mix<acc_t<scalar_t>>(load(f.variant.zoneout_c.at(t, b) + j, left), state, c[r])
                  : c[r];
      store(f.c_state + b * H + j, state, left);
      if (f.c) store(f.c + tb * H + j, state, left);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.first_row + r].b, tb = t * f.sequence.B + b;
      Gate gates = Gate::from(tile.at(r, p), stride, 0, stride);
      const Vec<scalar_t> m = finish_cell<scalar_t>(gates, c[r]);
      if (f.c) gates.to(f.gates + tb * 4 * H, H, j, left, f.streaming_stores);
      if (HasVariant && y) {
        store(y + b * H + j, zone_out_h(f, t, b, j, left, m), left);
        store_h_operand(f, y + b * H + j, n, b, j, left, operand);
      } else {
        store_operand(operand, operand.row(n, b), j, m, left);
        if (y) store(y + b * H + j, m, left);
      }
    }
  }
}

// The projection: y_t = W_hr m.
template <class scalar_t>
void project(const Forward<scalar_t>& f, int64_t n, int64_t t, const Row<scalar_t>* rows,
             MacroTile<scalar_t>& macrotile, scalar_t* y) {
  zero(macrotile);
  macrotile.add_product(packed_for(f.m_operand, f.packed_hr),
                        [&](int64_t r) { return f.m_operand.row(n, rows[r].b); });
  for (int64_t i = 0; i < macrotile.count; ++i) {
    Tile<scalar_t>& tile = macrotile.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.first_panel * NR<scalar_t> + v * lanes<scalar_t>;
        const int64_t b = rows[tile.first_row + r].b;
        if (j >= f.P) continue;
        const Vec<scalar_t> h = load(tile.at(r, 0) + v * lanes<scalar_t>);
        if (f.variant.any) {
          store(y + b * f.P + j, zone_out_h(f, t, b, j, f.P - j, h), f.P - j);
          store_h_operand(f, y + b * f.P + j, n, b, j, f.P - j, f.h_operand);
        } else {
          store(y + b * f.P + j, h, f.P - j);
          store_operand(f.h_operand, f.h_operand.row(n, b), j, h, f.P - j);
        }
      }
  }
}

template <class scalar_t>
void forward(const Forward<scalar_t>& f, const Team& team) {
  const auto& [T, B, reverse, lengths] = f.sequence;
  const int64_t H = f.H, P = f.P;
  const int64_t tallest = tile_rows<scalar_t>(f.h_operand.bf16x3);
  const Slice s = slice(team, B, f.min_rows_per_thread);
  const int64_t vectors = ceil_div(H, lanes<scalar_t>), panels = ceil_div(P, NR<scalar_t>);
  const int64_t first_panel = gate_panels * s.begin(vectors), last_panel = gate_panels * s.end(vectors);
  // This thread's channels of c [j0, j1) and of y [y0, y1).
  const int64_t j0 = s.begin(vectors) * lanes<scalar_t>, j1 = min(s.end(vectors) * lanes<scalar_t>, H);
  const int64_t y0 = f.weight_hr ? s.begin(panels) * NR<scalar_t> : j0;
  const int64_t y1 = f.weight_hr ? min(s.end(panels) * NR<scalar_t>, P) : j1;
  Row<scalar_t>* rows = f.rows + team.rank * B;

  init_state(f, s);
  if (f.x_steps == 1 && T > 0) copy_x(f, s, 0, 1);
  pack(f, team);

  for (int64_t n = 0; n < T; ++n) {
    const int64_t t = f.sequence.step(n);
    const int64_t count = active_rows(f, s, n, t, rows);
    scalar_t* y = f.y + t * B * P;
    if (f.x_steps == 1 && n + 1 < T) copy_x(f, s, n + 1, 1);
    if (f.x_steps > 1 && (n & (f.x_steps - 1)) == 0) compute_xw(f, s, n, first_panel, last_panel);
    if (f.variant.gain_hh) {
      for_macrotiles<scalar_t>(tallest, 0, count, first_panel, last_panel, n & 1, [&](auto& macrotile) {
        zero(macrotile);
        macrotile.add_product(packed_for(f.h_operand, f.packed_hh),
                              [&](int64_t r) { return rows[r].recurrent; });
        for (int64_t i = 0; i < macrotile.count; ++i)
          store_gates(macrotile.tiles[i], H, [&](int64_t r) { return f.hw + rows[r].b * 4 * H; });
      });
      s.sync();  // hw: all channels, before the mean over a row
      normalize(f, s, rows, count);
      s.sync();  // hw: normalised rows, before each thread reads its channels
    }
    for_macrotiles<scalar_t>(tallest, 0, count, first_panel, last_panel, n & 1, [&](auto& macrotile) {
      for (int64_t i = 0; i < macrotile.count; ++i) init_accumulators(f, n, t, rows, macrotile.tiles[i]);
      if (f.x_steps == 1)
        macrotile.add_product(packed_for(f.x_operand, f.packed_ih), [&](int64_t r) { return rows[r].x; });
      if (!f.variant.gain_hh)
        macrotile.add_product(packed_for(f.h_operand, f.packed_hh),
                              [&](int64_t r) { return rows[r].recurrent; });
      for (int64_t i = 0; i < macrotile.count; ++i) {
        Tile<scalar_t>& tile = macrotile.tiles[i];
        scalar_t* to = f.weight_hr ? nullptr : y;
        const OperandBuffer<scalar_t>& operand = f.weight_hr ? f.m_operand : f.h_operand;
        if (f.variant.gain_hh) add_normalized(f, rows, tile);
        if (f.variant.any)
          cell_epilogue<true>(f, n, t, rows, tile, to, operand);
        else
          cell_epilogue<false>(f, n, t, rows, tile, to, operand);
      }
    });
    if (lengths) fill_inactive(f, s, t, j0, j1, y0, y1);
    s.sync();  // m_operand with a projection, else h_operand: all channels; x_operand: the next step's rows
    if (f.weight_hr) {
      for_macrotiles<scalar_t>(tile_rows<scalar_t>(false), 0, count, s.begin(panels), s.end(panels), n & 1,
                               [&](auto& macrotile) { project(f, n, t, rows, macrotile, y); });
      s.sync();  // h_operand: all channels
    }
  }

  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    const scalar_t* h = f.sequence.length(b) ? f.y + (f.sequence.last(b) * B + b) * P : f.h0 + b * P;
    for (int64_t j = y0; j < y1; ++j) f.h_n[b * P + j] = h[j];
    for (int64_t j = j0; j < j1; j += lanes<scalar_t>)
      store(f.c_n + b * H + j, load(f.c_state + b * H + j, j1 - j), j1 - j);
  }
  if (f.streaming_stores) streaming_fence();
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
