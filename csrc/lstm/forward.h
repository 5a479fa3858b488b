// The sequence loop, forward.
#pragma once

#include "lstm/cell.h"
#include "gemm/pack.h"
#include "lstm/variant.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class Number>
void pack(const Forward<Number>& f, const Team& team) {
  const Slice all{0, 0, team.rank, team.size, team.everyone};
  const int64_t vectors = ceil_div(f.H, lanes<Number>), panels = ceil_div(f.P, panel<Number>);
  const auto gates = [&](const Number* weight, const Relay<Number>& relay, Number* to) {
    pack_gates(weight, f.H, relay.N, relay.in_parts, all.begin(vectors), all.end(vectors), to);
  };
  if (f.weight_ih) gates(f.weight_ih, f.x_next, f.packed_ih);
  gates(f.weight_hh, f.h, f.packed_hh);
  if (f.weight_hr)
    pack_channels(f.weight_hr, f.H, 1, f.P, f.H, false, all.begin(panels), all.end(panels), f.packed_hr);
  all.sync();
}

// What every row of the slice starts from: h0 in both slots, for a row may start at any step.
template <class Number>
void start(const Forward<Number>& f, const Slice& s) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    for (int64_t j = s.begin(f.H); j < s.end(f.H); j += lanes<Number>) {
      const int64_t n = min(lanes<Number>, s.end(f.H) - j);
      store(f.cell + b * f.H + j, load(f.c0 + b * f.H + j, n), n);
    }
    for (int64_t slot = 0; slot < 2; ++slot) {
      for (int64_t j = s.begin(f.P); j < s.end(f.P); j += lanes<Number>)
        relay_h(f, f.h0 + b * f.P + j, slot, b, j, min(lanes<Number>, s.end(f.P) - j), f.h);
      if (s.part == 0) {
        clear_past_end(f.h, slot, b);
        if (f.weight_hr) clear_past_end(f.m, slot, b);
      }
    }
  }
}

// This thread's share of x_t of `steps` steps from the n-th on, to where its rows do not fall on the same
// places of the cache.
template <class Number>
void relay_x(const Forward<Number>& f, const Slice& s, int64_t n, int64_t steps) {
  const int64_t rows = s.row_end - s.row_begin;
  for (int64_t r = s.begin(steps * rows); r < s.end(steps * rows); ++r) {
    const int64_t b = s.row_begin + r % rows;
    const Number* x = f.x.at(f.sequence.step(n + r / rows), b);
    Number* to = f.x_next.at(n + r / rows, b);
    if (f.x_next.in_parts)
      for (int64_t i = 0; i < f.I; i += lanes<Number>)
        hand_on(f.x_next, to, i, load(x + i, f.I - i), f.I - i);
    else
      __builtin_memcpy(to, x, static_cast<size_t>(f.I) * sizeof(Number));
    clear_past_end(f.x_next, n + r / rows, b);
  }
}

// The tile's sums, to where `to` says of each row [4H].
template <class Number, class To>
void store_gates(Tile<Number>& tile, int64_t H, To to) {
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.panel0 + p) / gate_panels * lanes<Number>;
    for (int64_t r = 0; r < tile.rows; ++r)
      Gates<Real<Number>>::from(tile.at(r, p), lanes<Number>, 0, lanes<Number>)
          .to(to(tile.row + r), H, j, H - j);
  }
}

// W_ih x of this thread's channels and of x_steps steps from the n-th on: a few rows would use each weight
// too seldom.
template <class Number>
void form_xw(const Forward<Number>& f, const Slice& s, int64_t n, int64_t first_panel, int64_t last_panel) {
  const int64_t rows = s.row_end - s.row_begin, steps = min(f.x_steps, f.sequence.T - n);
  relay_x(f, s, n, steps);
  s.sync();
  const int64_t tall = tallest<Number>(f.x_next.in_parts);
  for_columns<Number>(tall, 0, steps * rows, first_panel, last_panel, false, [&](Column<Number>& column) {
    zero(column);
    column.add_product(packed(f.packed_ih, f.x_next),
                       [&](int64_t r) { return f.x_next.at(n + r / rows, s.row_begin + r % rows); });
    for (int64_t i = 0; i < column.count; ++i)
      store_gates(column.tiles[i], f.H, [&](int64_t r) {
        return f.xw + (r / rows * f.sequence.B + s.row_begin + r % rows) * 4 * f.H;
      });
  });
}

// The rows of the slice that have a step at t, the n-th; returns how many.
template <class Number>
int64_t rows_at(const Forward<Number>& f, const Slice& s, int64_t n, int64_t t, Row<Number>* rows) {
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < f.sequence.length(b))
      rows[count++] = {b, f.x_steps == 1 ? f.x_next.at(n, b) : nullptr, f.h.at(n + 1, b)};
  return count;
}

// What a row without a step at t leaves there: zero output, and c as it was.
template <class Number>
void pad(const Forward<Number>& f, const Slice& s, int64_t t, int64_t j0, int64_t j1, int64_t y0,
         int64_t y1) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    if (t < f.sequence.length(b)) continue;
    const int64_t tb = t * f.sequence.B + b;
    for (int64_t j = y0; j < y1; ++j) f.y[tb * f.P + j] = {};
    if (!f.c) continue;
    for (int64_t j = j0; j < j1; j += lanes<Number>)
      store(f.c + tb * f.H + j, load(f.cell + b * f.H + j, j1 - j), j1 - j);
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t j = j0; j < j1; ++j) f.gates[(tb * 4 + gate) * f.H + j] = {};
  }
}

// What a_t starts from, into the tile's sums: bias, and W_ih x unless that is formed inside the step.
template <class Number>
void bias(const Forward<Number>& f, int64_t n, int64_t t, const Row<Number>* rows, Tile<Number>& tile) {
  const Real<Number>* xw = f.x_steps > 1 ? f.xw + (n & (f.x_steps - 1)) * f.sequence.B * 4 * f.H : nullptr;
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.panel0 + p) / gate_panels * lanes<Number>, left = f.H - j;
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t at = gate * f.H + j;
      const Vec<Real<Number>> same = f.bias ? load(f.bias + at, left) : Vec<Real<Number>>{};
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t b = rows[tile.row + r].b;
        Vec<Real<Number>> sum = same;
        if (f.x_steps == 0) sum += load(f.x.at(t, b) + at, left);
        if (xw) sum += load(xw + b * 4 * f.H + at, left);
        store(tile.at(r, p) + gate * lanes<Number>, sum);
      }
    }
  }
}

// The cell on the tile's sums; o * tanh(c) goes to rows b of y [B, H], if that is given, and of the relay.
// In two rounds over the rows: what waits for c would otherwise hold up the next row's gates.
template <bool Varied, class Number>
void cells(const Forward<Number>& f, int64_t n, int64_t t, const Row<Number>* rows, Tile<Number>& tile,
           Number* y, const Relay<Number>& relay) {
  using Gate = Gates<Real<Number>>;
  constexpr int64_t apart = lanes<Number>;  // of the gates in the tile
  const int64_t H = f.H;
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.panel0 + p) / gate_panels * lanes<Number>, left = H - j;
    const Peephole<Real<Number>> peephole(f.peephole, H, j, left);
    Vec<Real<Number>> c[most_rows<Number>];
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.row + r].b, tb = t * f.sequence.B + b;
      Gate gates = Gate::from(tile.at(r, p), apart, 0, apart);
      Vec<Real<Number>> kept = c[r] = load(f.cell + b * H + j, left);
      update_cell<Varied, Number>(gates, c[r], peephole, f.variant.cell_clip);
      gates.to(tile.at(r, p), apart, 0, apart);
      kept = Varied && f.variant.zoneout_c.data
                 ? mix<Real<Number>>(load(f.variant.zoneout_c.at(t, b) + j, left), kept, c[r])
                 : c[r];
      store(f.cell + b * H + j, kept, left);
      if (f.c) store(f.c + tb * H + j, kept, left);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.row + r].b, tb = t * f.sequence.B + b;
      Gate gates = Gate::from(tile.at(r, p), apart, 0, apart);
      const Vec<Real<Number>> m = show_cell<Number>(gates, c[r]);
      if (f.c) gates.to(f.gates + tb * 4 * H, H, j, left, f.streams);
      if (Varied && y) {
        store(y + b * H + j, zone_out_h(f, t, b, j, left, m), left);
        relay_h(f, y + b * H + j, n, b, j, left, relay);
      } else {
        hand_on(relay, relay.at(n, b), j, m, left);
        if (y) store(y + b * H + j, m, left);
      }
    }
  }
}

// y_t = W_hr m.
template <class Number>
void project(const Forward<Number>& f, int64_t n, int64_t t, const Row<Number>* rows, Column<Number>& column,
             Number* y) {
  zero(column);
  column.add_product(packed(f.packed_hr, f.m), [&](int64_t r) { return f.m.at(n, rows[r].b); });
  for (int64_t i = 0; i < column.count; ++i) {
    Tile<Number>& tile = column.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.panel0 * panel<Number> + v * lanes<Number>, b = rows[tile.row + r].b;
        if (j >= f.P) continue;
        const Vec<Real<Number>> h = load(tile.at(r, 0) + v * lanes<Number>);
        if (f.variant.any) {
          store(y + b * f.P + j, zone_out_h(f, t, b, j, f.P - j, h), f.P - j);
          relay_h(f, y + b * f.P + j, n, b, j, f.P - j, f.h);
        } else {
          store(y + b * f.P + j, h, f.P - j);
          hand_on(f.h, f.h.at(n, b), j, h, f.P - j);
        }
      }
  }
}

template <class Number>
void forward(const Forward<Number>& f, const Team& team) {
  const auto& [T, B, reverse, lengths] = f.sequence;
  const int64_t H = f.H, P = f.P;
  const int64_t inner =
      depth<Number>(P, f.h.in_parts) + (f.x_steps == 1 ? depth<Number>(f.I, f.x_next.in_parts) : 0);
  const int64_t tall = tallest<Number>(f.h.in_parts);
  const Slice s = slice(team, B, 4 * H * inner * static_cast<int64_t>(sizeof(Number)), tall);
  const int64_t vectors = ceil_div(H, lanes<Number>), panels = ceil_div(P, panel<Number>);
  const int64_t first_panel = gate_panels * s.begin(vectors), last_panel = gate_panels * s.end(vectors);
  // This thread's channels of c [j0, j1) and of y [y0, y1).
  const int64_t j0 = s.begin(vectors) * lanes<Number>, j1 = min(s.end(vectors) * lanes<Number>, H);
  const int64_t y0 = f.weight_hr ? s.begin(panels) * panel<Number> : j0;
  const int64_t y1 = f.weight_hr ? min(s.end(panels) * panel<Number>, P) : j1;
  Row<Number>* rows = f.rows + team.rank * B;

  start(f, s);
  if (f.x_steps == 1 && T > 0) relay_x(f, s, 0, 1);
  pack(f, team);

  for (int64_t n = 0; n < T; ++n) {
    const int64_t t = f.sequence.step(n);
    const int64_t count = rows_at(f, s, n, t, rows);
    Number* y = f.y + t * B * P;
    if (f.x_steps == 1 && n + 1 < T) relay_x(f, s, n + 1, 1);
    if (f.x_steps > 1 && (n & (f.x_steps - 1)) == 0) form_xw(f, s, n, first_panel, last_panel);
    if (f.variant.gain_hh) {
      for_columns<Number>(tall, 0, count, first_panel, last_panel, n & 1, [&](Column<Number>& column) {
        zero(column);
        column.add_product(packed(f.packed_hh, f.h), [&](int64_t r) { return rows[r].in; });
        for (int64_t i = 0; i < column.count; ++i)
          store_gates(column.tiles[i], H, [&](int64_t r) { return f.hw + rows[r].b * 4 * H; });
      });
      s.sync();
      normalize(f, s, rows, count);
      s.sync();
    }
    for_columns<Number>(tall, 0, count, first_panel, last_panel, n & 1, [&](Column<Number>& column) {
      for (int64_t i = 0; i < column.count; ++i) bias(f, n, t, rows, column.tiles[i]);
      if (f.x_steps == 1)
        column.add_product(packed(f.packed_ih, f.x_next), [&](int64_t r) { return rows[r].x; });
      if (!f.variant.gain_hh)
        column.add_product(packed(f.packed_hh, f.h), [&](int64_t r) { return rows[r].in; });
      for (int64_t i = 0; i < column.count; ++i) {
        Tile<Number>& tile = column.tiles[i];
        Number* to = f.weight_hr ? nullptr : y;
        const Relay<Number>& relay = f.weight_hr ? f.m : f.h;
        if (f.variant.gain_hh) add_normalized(f, rows, tile);
        if (f.variant.any)
          cells<true>(f, n, t, rows, tile, to, relay);
        else
          cells<false>(f, n, t, rows, tile, to, relay);
      }
    });
    if (lengths) pad(f, s, t, j0, j1, y0, y1);
    s.sync();
    if (f.weight_hr) {
      for_columns<Number>(tallest<Number>(false), 0, count, s.begin(panels), s.end(panels), n & 1,
                          [&](Column<Number>& column) { project(f, n, t, rows, column, y); });
      s.sync();
    }
  }

  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    const Number* h = f.sequence.length(b) ? f.y + (f.sequence.last(b) * B + b) * P : f.h0 + b * P;
    for (int64_t j = y0; j < y1; ++j) f.h_n[b * P + j] = h[j];
    for (int64_t j = j0; j < j1; j += lanes<Number>)
      store(f.c_n + b * H + j, load(f.cell + b * H + j, j1 - j), j1 - j);
  }
  if (f.streams) finish_streams();
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
