// The sequence loop, forward.
#pragma once

#include "cell.h"
#include "pack.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class Real>
void pack(const Forward<Real>& f, const Team& team) {
  const Slice all{0, 0, team.rank, team.size, team.everyone};
  const int64_t vectors = ceil_div(f.H, lanes<Real>), panels = ceil_div(f.P, panel<Real>);
  if (f.x_in_step) pack_gates(f.weight_ih, f.H, f.I, all.begin(vectors), all.end(vectors), f.packed_ih);
  pack_gates(f.weight_hh, f.H, f.P, all.begin(vectors), all.end(vectors), f.packed_hh);
  if (f.weight_hr)
    pack_channels(f.weight_hr, f.H, 1, f.P, f.H, all.begin(panels), all.end(panels), f.packed_hr);
  all.sync();
}

// The rows of the slice that have a step at t; returns how many.
template <class Real>
int64_t rows_at(const Forward<Real>& f, const Slice& s, int64_t t, Row<Real>* rows) {
  int64_t n = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < f.sequence.length(b)) {
      const bool starts = t == f.sequence.first(b);
      const Real* h = starts ? f.h0 + b * f.P : f.y + (f.sequence.previous(t) * f.sequence.B + b) * f.P;
      rows[n++] = {b, f.x.at(t, b), h};
    }
  return n;
}

// What a row without a step at t leaves there: zero output, and c as it was.
template <class Real>
void pad(const Forward<Real>& f, const Slice& s, int64_t t, int64_t j0, int64_t j1, int64_t y0, int64_t y1) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    if (t < f.sequence.length(b)) continue;
    const int64_t tb = t * f.sequence.B + b;
    for (int64_t j = y0; j < y1; ++j) f.y[tb * f.P + j] = 0;
    if (!f.c) continue;
    for (int64_t j = j0; j < j1; ++j) {
      f.c[tb * f.H + j] = f.c_n[b * f.H + j];
      for (int64_t gate = 0; gate < 4; ++gate) f.gates[tb * 4 * f.H + gate * f.H + j] = 0;
    }
  }
}

// a_t into the tile's sums: bias or xw, then the products.
template <class Real>
void preactivations(const Forward<Real>& f, int64_t t, const Row<Real>* rows, Tile<Real>& tile) {
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.panel0 + p) / gate_panels * lanes<Real>;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const Real* start = f.x_in_step ? f.bias : f.xw + (t * f.sequence.B + rows[tile.row + r].b) * 4 * f.H;
      for (int64_t gate = 0; gate < 4; ++gate)
        store(tile.at(r, p) + gate * lanes<Real>,
              start ? load(start + gate * f.H + j, f.H - j) : Vec<Real>{});
    }
  }
  if (f.x_in_step) tile.add_product(f.I, f.packed_ih, [&](int64_t r) { return rows[r].x; });
  tile.add_product(f.P, f.packed_hh, [&](int64_t r) { return rows[r].in; });
}

// The cell on the tile's sums; o * tanh(c) goes to row b of m [B, H].
template <class Real>
void cells(const Forward<Real>& f, int64_t t, const Row<Real>* rows, Tile<Real>& tile, Real* m) {
  const int64_t H = f.H;
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.panel0 + p) / gate_panels * lanes<Real>, n = H - j;
    const Peephole<Real> peephole(f.peephole, H, j, n);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.row + r].b;
      auto gates = Gates<Real>::from(tile.at(r, p), lanes<Real>, 0, lanes<Real>);
      Vec<Real> c = load(f.c_n + b * H + j, n);
      store(m + b * H + j, cell_forward(gates, c, peephole), n);
      store(f.c_n + b * H + j, c, n);
      if (f.c) {
        const int64_t tb = t * f.sequence.B + b;
        store(f.c + tb * H + j, c, n);
        gates.to(f.gates + tb * 4 * H, H, j, n);
      }
    }
  }
}

// y_t = W_hr m.
template <class Real>
void project(const Forward<Real>& f, const Row<Real>* rows, Tile<Real>& tile, Real* y) {
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t v = 0; v < 2 * tile.panels; ++v) store(tile.at(r, 0) + v * lanes<Real>, Vec<Real>{});
  tile.add_product(f.H, f.packed_hr, [&](int64_t r) { return f.m + rows[r].b * f.H; });
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t v = 0; v < 2 * tile.panels; ++v) {
      const int64_t j = tile.panel0 * panel<Real> + v * lanes<Real>;
      if (j < f.P) store(y + rows[tile.row + r].b * f.P + j, load(tile.at(r, 0) + v * lanes<Real>), f.P - j);
    }
}

template <class Real>
void forward(const Forward<Real>& f, const Team& team) {
  const auto& [T, B, reverse, lengths] = f.sequence;
  const int64_t H = f.H, P = f.P, inner = P + (f.x_in_step ? f.I : 0);
  const Slice s = slice(team, B, 4 * H * inner * static_cast<int64_t>(sizeof(Real)), tile_rows);
  const int64_t vectors = ceil_div(H, lanes<Real>), panels = ceil_div(P, panel<Real>);
  // This thread's channels of c [j0, j1) and of y [y0, y1).
  const int64_t j0 = s.begin(vectors) * lanes<Real>, j1 = min(s.end(vectors) * lanes<Real>, H);
  const int64_t y0 = f.weight_hr ? s.begin(panels) * panel<Real> : j0;
  const int64_t y1 = f.weight_hr ? min(s.end(panels) * panel<Real>, P) : j1;
  Row<Real>* rows = f.rows + team.rank * B;

  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    for (int64_t j = j0; j < j1; ++j) f.c_n[b * H + j] = f.c0[b * H + j];
  pack(f, team);

  for (int64_t n = 0; n < T; ++n) {
    const int64_t t = f.sequence.step(n);
    const int64_t count = rows_at(f, s, t, rows);
    Real* y = f.y + t * B * P;
    for_tiles<Real>(0, count, gate_panels * s.begin(vectors), gate_panels * s.end(vectors),
                    [&](Tile<Real>& tile) {
                      preactivations(f, t, rows, tile);
                      cells(f, t, rows, tile, f.weight_hr ? f.m : y);
                    });
    if (lengths) pad(f, s, t, j0, j1, y0, y1);
    s.sync();
    if (f.weight_hr) {
      for_tiles<Real>(0, count, s.begin(panels), s.end(panels),
                      [&](Tile<Real>& tile) { project(f, rows, tile, y); });
      s.sync();
    }
  }

  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    const Real* h = f.sequence.length(b) ? f.y + (f.sequence.last(b) * B + b) * P : f.h0 + b * P;
    for (int64_t j = y0; j < y1; ++j) f.h_n[b * P + j] = h[j];
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
