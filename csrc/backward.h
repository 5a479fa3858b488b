// The sequence loop, back: dh_{t-1} = da_t W_hh is the tile's product, the gates of step t - 1 its epilogue.
#pragma once

#include "cell.h"
#include "pack.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class Real>
void pack(const Backward<Real>& f, const Team& team) {
  const Slice all{0, 0, team.rank, team.size, team.everyone};
  const int64_t p = ceil_div(f.P, panel<Real>), h = ceil_div(f.H, panel<Real>);
  pack_channels(f.weight_hh, 1, f.P, f.P, 4 * f.H, all.begin(p), all.end(p), f.packed_hh);
  if (f.weight_hr) pack_channels(f.weight_hr, 1, f.H, f.H, f.P, all.begin(h), all.end(h), f.packed_hr);
  all.sync();
}

// The rows of the slice that have a step at t: first those with a step after it, then those that end there.
struct Count {
  int64_t going_on, all;
};

template <class Real>
Count rows_at(const Backward<Real>& f, const Slice& s, int64_t t, Row<Real>* rows) {
  const Sequence& q = f.sequence;
  int64_t n = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < q.length(b) && t != q.last(b)) rows[n++] = {b, nullptr, f.dxw + (q.next(t) * q.B + b) * 4 * f.H};
  const int64_t going_on = n;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < q.length(b) && t == q.last(b)) rows[n++] = {b, nullptr, nullptr};
  return {going_on, n};
}

// da is zero where a row has no step.
template <class Real>
void pad(const Backward<Real>& f, const Slice& s, int64_t t, int64_t j0, int64_t j1) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t >= f.sequence.length(b))
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t j = j0; j < j1; ++j) f.dxw[((t * f.sequence.B + b) * 4 + gate) * f.H + j] = 0;
}

// What h_t's gradient gets from the steps after t, into the tile's sums: da_{t+1} W_hh, or dh_n at the end.
template <class Real>
void from_later(const Backward<Real>& f, const Row<Real>* rows, Tile<Real>& tile) {
  const bool ends = rows[tile.row].in == nullptr;
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t v = 0; v < 2 * tile.panels; ++v) {
      const int64_t j = tile.panel0 * panel<Real> + v * lanes<Real>;
      const bool given = ends && f.dh_n && j < f.P;
      store(tile.at(r, 0) + v * lanes<Real>,
            given ? load(f.dh_n + rows[tile.row + r].b * f.P + j, f.P - j) : Vec<Real>{});
    }
  if (!ends) tile.add_product(4 * f.H, f.packed_hh, [&](int64_t r) { return rows[r].in; });
}

// The tile's sums, with dy_t where t is a step, to rows b of dh [B, P].
template <class Real>
void store_dh(const Backward<Real>& f, const Row<Real>* rows, Tile<Real>& tile, int64_t t, bool with_dy,
              Real* dh) {
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t v = 0; v < 2 * tile.panels; ++v) {
      const int64_t j = tile.panel0 * panel<Real> + v * lanes<Real>, b = rows[tile.row + r].b;
      if (j >= f.P) continue;
      Vec<Real> sum = load(tile.at(r, 0) + v * lanes<Real>);
      if (with_dy && f.dy.data) sum += load(f.dy.at(t, b) + j, f.P - j);
      store(dh + b * f.P + j, sum, f.P - j);
    }
}

// The cell on the tile's sums, the gradients of o * tanh(c) but for dy_t.
template <class Real>
void cells(const Backward<Real>& f, const Row<Real>* rows, Tile<Real>& tile, int64_t t, bool with_dy) {
  const int64_t H = f.H, B = f.sequence.B;
  for (int64_t v = 0; v < 2 * tile.panels; ++v) {
    const int64_t j = tile.panel0 * panel<Real> + v * lanes<Real>, n = H - j;
    if (n <= 0) continue;
    const Peephole<Real> peephole(f.peephole, H, j, n);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.row + r].b, tb = t * B + b;
      const bool starts = t == f.sequence.first(b);
      const Real* c_prev = starts ? f.c0 + b * H : f.c + (f.sequence.previous(t) * B + b) * H;
      Vec<Real> dm = load(tile.at(r, 0) + v * lanes<Real>);
      if (with_dy && f.dy.data) dm += load(f.dy.at(t, b) + j, n);
      Vec<Real> dc = load(f.dc0 + b * H + j, n);
      cell_backward(dm, dc, Gates<Real>::from(f.gates + tb * 4 * H, H, j, n), load(f.c + tb * H + j, n),
                    load(c_prev + j, n), peephole)
          .to(f.dxw + tb * 4 * H, H, j, n);
      store(f.dc0 + b * H + j, dc, n);
    }
  }
}

template <class Real>
void backward(const Backward<Real>& f, const Team& team) {
  const Sequence& q = f.sequence;
  const int64_t H = f.H, P = f.P;
  const Slice s = slice(team, q.B, 4 * H * P * static_cast<int64_t>(sizeof(Real)), tile_rows);
  const int64_t h_panels = ceil_div(H, panel<Real>), p_panels = ceil_div(P, panel<Real>);
  const int64_t h0 = s.begin(h_panels), h1 = s.end(h_panels), p0 = s.begin(p_panels), p1 = s.end(p_panels);
  const int64_t j0 = h0 * panel<Real>, j1 = min(h1 * panel<Real>, H);  // this thread's channels of c
  Row<Real>* rows = f.rows + team.rank * q.B;

  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    for (int64_t j = j0; j < j1; ++j) f.dc0[b * H + j] = f.dc_n ? f.dc_n[b * H + j] : Real(0);
  pack(f, team);

  for (int64_t n = q.T - 1; n >= 0; --n) {
    const int64_t t = q.step(n);
    const Count count = rows_at(f, s, t, rows);
    // Rows that end here have no product and must not share a tile with those that go on.
    const auto for_rows = [&](int64_t first, int64_t last, auto visit) {
      for_tiles<Real>(0, count.going_on, first, last, visit);
      for_tiles<Real>(count.going_on, count.all, first, last, visit);
    };
    if (!f.weight_hr) {
      for_rows(h0, h1, [&](Tile<Real>& tile) {
        from_later(f, rows, tile);
        cells(f, rows, tile, t, true);
      });
    } else {
      for_rows(p0, p1, [&](Tile<Real>& tile) {
        from_later(f, rows, tile);
        store_dh(f, rows, tile, t, true, f.dh);
      });
      s.sync();
      for_tiles<Real>(0, count.all, h0, h1, [&](Tile<Real>& tile) {
        for (Real& sum : tile.sums) sum = 0;
        tile.add_product(P, f.packed_hr, [&](int64_t r) { return f.dh + rows[r].b * P; });
        cells(f, rows, tile, t, false);
      });
    }
    if (q.lengths) pad(f, s, t, j0, j1);
    s.sync();
  }

  // dh0: a row's first da W_hh, or dh_n where it has no step at all.
  int64_t n = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (q.length(b)) rows[n++] = {b, nullptr, f.dxw + (q.first(b) * q.B + b) * 4 * H};
  const int64_t with_steps = n;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (!q.length(b)) rows[n++] = {b, nullptr, nullptr};
  const auto to_dh0 = [&](Tile<Real>& tile) {
    from_later(f, rows, tile);
    store_dh(f, rows, tile, 0, false, f.dh0);
  };
  for_tiles<Real>(0, with_steps, p0, p1, to_dh0);
  for_tiles<Real>(with_steps, n, p0, p1, to_dh0);
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
