// The sequence loop, back: dh_{t-1} = da_t W_hh is the tile's product, the gates of step t - 1 its epilogue.
#pragma once

#include "lstm/cell.h"
#include "gemm/pack.h"
#include "lstm/variant.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class Number>
void pack(const Backward<Number>& f, const Team& team) {
  const Slice all{0, 0, team.rank, team.size, team.everyone};
  const int64_t p = ceil_div(f.P, panel<Number>), h = ceil_div(f.H, panel<Number>);
  pack_channels(f.weight_hh, 1, f.P, f.P, 4 * f.H, f.da.in_parts, all.begin(p), all.end(p), f.packed_hh);
  if (f.weight_hr) pack_channels(f.weight_hr, 1, f.H, f.H, f.P, false, all.begin(h), all.end(h), f.packed_hr);
  all.sync();
}

// dc_n, and zero past the end of what is relayed.
template <class Number>
void start(const Backward<Number>& f, const Slice& s) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b) {
    for (int64_t j = s.begin(f.H); j < s.end(f.H); j += lanes<Number>) {
      const int64_t n = min(lanes<Number>, s.end(f.H) - j);
      store(f.dcell + b * f.H + j, f.dc_n ? load(f.dc_n + b * f.H + j, n) : Vec<Real<Number>>{}, n);
    }
    for (int64_t slot = 0; slot < 2 && s.part == 0; ++slot) {
      clear_past_end(f.da, slot, b);
      if (f.weight_hr) clear_past_end(f.dh, slot, b);
    }
  }
}

// The rows of the slice that have a step at t, the n-th: first those with a step after it, then those that
// end there.
struct Count {
  int64_t going_on, all;
};

template <class Number>
Count rows_at(const Backward<Number>& f, const Slice& s, int64_t n, int64_t t, Row<Number>* rows) {
  const Sequence& q = f.sequence;
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < q.length(b) && t != q.last(b)) rows[count++] = {b, nullptr, f.da.at(n + 1, b)};
  const int64_t going_on = count;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t < q.length(b) && t == q.last(b)) rows[count++] = {b, nullptr, nullptr};
  return {going_on, count};
}

// da is zero where a row has no step.
template <class Number>
void pad(const Backward<Number>& f, const Slice& s, int64_t t, int64_t j0, int64_t j1) {
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (t >= f.sequence.length(b))
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t j = j0; j < j1; ++j) {
          const int64_t at = ((t * f.sequence.B + b) * 4 + gate) * f.H + j;
          f.dxw[at] = {};
          if (f.dhw) f.dhw[at] = {};
        }
}

// What h_t's gradient gets from the steps after t, into the sums: da_{t+1} W_hh, or dh_n at the end.
template <class Number>
void from_later(const Backward<Number>& f, const Row<Number>* rows, Column<Number>& column) {
  const bool ends = rows[column.tiles[0].row].in == nullptr;
  for (int64_t i = 0; i < column.count; ++i) {
    Tile<Number>& tile = column.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.panel0 * panel<Number> + v * lanes<Number>;
        const bool given = ends && f.dh_n && j < f.P;
        store(tile.at(r, 0) + v * lanes<Number>,
              given ? load(f.dh_n + rows[tile.row + r].b * f.P + j, f.P - j) : Vec<Real<Number>>{});
      }
  }
  if (!ends) column.add_product(packed(f.packed_hh, f.da), [&](int64_t r) { return rows[r].in; });
}

// The tile's sums, with dy_t where t is a step, to where `to` says of each row.
template <class Number, class To>
void store_dh(const Backward<Number>& f, const Row<Number>* rows, Column<Number>& column, int64_t t,
              bool with_dy, To to) {
  for (int64_t i = 0; i < column.count; ++i) {
    Tile<Number>& tile = column.tiles[i];
    for (int64_t r = 0; r < tile.rows; ++r)
      for (int64_t v = 0; v < 2 * tile.panels; ++v) {
        const int64_t j = tile.panel0 * panel<Number> + v * lanes<Number>, b = rows[tile.row + r].b;
        if (j >= f.P) continue;
        Vec<Real<Number>> sum = load(tile.at(r, 0) + v * lanes<Number>);
        if (f.variant.any)
          sum = gradient_of_h(f, rows[tile.row + r], with_dy ? t : -1, j, sum);
        else if (with_dy && f.dy.data)
          sum += load(f.dy.at(t, b) + j, f.P - j);
        store(to(b) + j, sum, f.P - j);
      }
  }
}

// Adds to a sum in double as long as all steps of all rows; what rounding it loses, exactly, is summed apart.
template <class T>
inline void add_exactly(T& sum, T& lost, T v) {
  const T before = sum;
  sum += v;
  const T added = sum - before;
  lost += (before - (sum - added)) + (v - added);
}

// Adds to sums that are kept in double, and of doubles with what rounding lost, `lost` numbers further on.
inline void add_to(double* sums, int64_t lost, Vec<double> v) {
  Vec<double> sum = load(sums), rest = load(sums + lost);
  add_exactly(sum, rest, v);
  store(sums, sum);
  store(sums + lost, rest);
}

inline void add_to(double* sums, int64_t, Vec<float> v) {
  typedef float Half __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  for (int64_t n = 0; n < 2; ++n) {
    double* to = sums + n * lanes<double>;
    store(to, load(to) + __builtin_convertvector(halves[n], Vec<double>));
  }
}

// The cell on the tile's sums, the gradients of o * tanh(c) but for dy_t; adds to sums [2, 7, width].
template <bool Varied, class Number>
void cells(const Backward<Number>& f, int64_t n, int64_t t, const Row<Number>* rows, Tile<Number>& tile,
           bool with_dy, double* sums) {
  using Gate = Gates<Real<Number>>;
  const int64_t H = f.H, B = f.sequence.B;
  for (int64_t v = 0; v < 2 * tile.panels; ++v) {
    const int64_t j = tile.panel0 * panel<Number> + v * lanes<Number>, left = H - j;
    if (left <= 0) continue;
    const Peephole<Real<Number>> peephole(f.peephole, H, j, left);
    Vec<Real<Number>> sum[7] = {};
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.row + r].b, tb = t * B + b;
      const bool starts = t == f.sequence.first(b);
      const Number* before = starts ? f.c0 + b * H : f.c + (f.sequence.previous(t) * B + b) * H;
      const Gate gates = Gate::from(f.gates + tb * 4 * H, H, j, left);
      Vec<Real<Number>> c = load(f.c + tb * H + j, left), dc_kept = {};
      const Vec<Real<Number>> c_prev = load(before + j, left);
      Vec<Real<Number>> dm = load(tile.at(r, 0) + v * lanes<Number>);
      Vec<Real<Number>> dc = load(f.dcell + b * H + j, left);
      if (Varied && with_dy)
        dm = gradient_of_h(f, rows[tile.row + r], t, j, dm);
      else if (with_dy && f.dy.data)
        dm += load(f.dy.at(t, b) + j, left);
      if (Varied && f.variant.zoneout_c.data) {
        const Vec<Real<Number>> share = load(f.variant.zoneout_c.at(t, b) + j, left);
        dc_kept = share * dc;
        dc *= 1 - share;
        c = clip<Real<Number>>(gates.f * c_prev + gates.i * gates.g, f.variant.cell_clip);
      }
      const Gate da = cell_backward<Varied, Number>(dm, dc, gates, c, c_prev, peephole, f.variant.cell_clip);
      if (Varied) dc += dc_kept;
      da.to(f.dxw + tb * 4 * H, H, j, left, f.streams);
      Number* next = f.da.at(n, b);
      hand_on(f.da, next, j, da.i, left);
      hand_on(f.da, next, H + j, da.f, left);
      hand_on(f.da, next, 2 * H + j, da.g, left);
      hand_on(f.da, next, 3 * H + j, da.o, left);
      store(f.dcell + b * H + j, dc, left);
      sum[0] += da.i, sum[1] += da.f, sum[2] += da.g, sum[3] += da.o;
      if (peephole.present) sum[4] += da.i * c_prev, sum[5] += da.f * c_prev, sum[6] += da.o * c;
    }
    for (int64_t k = 0; k < 7; ++k) add_to(sums + k * f.width + j, 7 * f.width, sum[k]);
  }
}

// dbias and dpeephole: the sums of all groups of rows, in their order.
template <class Number>
void finish_sums(const Backward<Number>& f, const Team& team) {
  const Slice all{0, 0, team.rank, team.size, team.everyone};
  all.sync();
  for (int64_t k = 0; k < 7; ++k)
    for (int64_t j = all.begin(f.H); j < all.end(f.H); ++j) {
      double sum = 0, lost = 0;
      for (int group = 0; group < team.size; ++group) {
        const double* of_group = f.sums + (group * 14 + k) * f.width + j;
        add_exactly(sum, lost, of_group[0]);
        lost += of_group[7 * f.width];
      }
      if (lost == lost) sum += lost;  // not so where a sum is infinite
      const Vec<Real<Number>> value = broadcast(static_cast<Real<Number>>(sum));
      store(k < 4 ? f.dbias + k * f.H + j : f.dpeephole + (k - 4) * f.H + j, value, 1);
    }
}

template <class Number>
void backward(const Backward<Number>& f, const Team& team) {
  const FlushSubnormals flush;
  const Sequence& q = f.sequence;
  const int64_t H = f.H, P = f.P;
  const int64_t tall = tallest<Number>(f.da.in_parts);
  const Slice s =
      slice(team, q.B, P * depth<Number>(4 * H, f.da.in_parts) * static_cast<int64_t>(sizeof(Number)), tall);
  const int64_t h_panels = ceil_div(H, panel<Number>), p_panels = ceil_div(P, panel<Number>);
  const int64_t h0 = s.begin(h_panels), h1 = s.end(h_panels), p0 = s.begin(p_panels), p1 = s.end(p_panels);
  const int64_t j0 = h0 * panel<Number>, j1 = min(h1 * panel<Number>, H);  // this thread's channels of c
  Row<Number>* rows = f.rows + team.rank * q.B;
  double* sums = f.sums + (team.rank - s.part) * 14 * f.width;  // the group's, of whom each has its channels

  for (int64_t j = 0; j < 14 * f.width; ++j) f.sums[team.rank * 14 * f.width + j] = 0;
  start(f, s);
  pack(f, team);

  for (int64_t n = q.T - 1; n >= 0; --n) {
    const int64_t t = q.step(n);
    const Count count = rows_at(f, s, n, t, rows);
    // Rows that end here have no product and must not share a tile with those that go on.
    const auto for_rows = [&](int64_t first, int64_t last, auto visit) {
      for_columns<Number>(tall, 0, count.going_on, first, last, n & 1, visit);
      for_columns<Number>(tall, count.going_on, count.all, first, last, n & 1, visit);
    };
    if (!f.weight_hr) {
      for_rows(h0, h1, [&](Column<Number>& column) {
        from_later(f, rows, column);
        for (int64_t i = 0; i < column.count; ++i)
          if (f.variant.any)
            cells<true>(f, n, t, rows, column.tiles[i], true, sums);
          else
            cells<false>(f, n, t, rows, column.tiles[i], true, sums);
      });
    } else {
      for_rows(p0, p1, [&](Column<Number>& column) {
        from_later(f, rows, column);
        store_dh(f, rows, column, t, true, [&](int64_t b) { return f.dh.at(n, b); });
      });
      s.sync();
      for_columns<Number>(tallest<Number>(false), 0, count.all, h0, h1, n & 1, [&](Column<Number>& column) {
        zero(column);
        column.add_product(packed(f.packed_hr, f.dh), [&](int64_t r) { return f.dh.at(n, rows[r].b); });
        for (int64_t i = 0; i < column.count; ++i)
          if (f.variant.any)
            cells<true>(f, n, t, rows, column.tiles[i], false, sums);
          else
            cells<false>(f, n, t, rows, column.tiles[i], false, sums);
      });
    }
    if (q.lengths) pad(f, s, t, j0, j1);
    s.sync();
    if (f.variant.gain_hh) {
      denormalize(f, s, n, t, rows, count.all);
      s.sync();
    }
  }

  // dh0: a row's first da W_hh, or dh_n where it has no step at all.
  const auto first_step = [&](int64_t b) { return q.reverse ? q.T - q.length(b) : int64_t{0}; };
  int64_t count = 0;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (q.length(b)) rows[count++] = {b, nullptr, f.da.at(first_step(b), b)};
  const int64_t with_steps = count;
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    if (!q.length(b)) rows[count++] = {b, nullptr, nullptr};
  const auto to_dh0 = [&](Column<Number>& column) {
    from_later(f, rows, column);
    store_dh(f, rows, column, 0, false, [&](int64_t b) { return f.dh0 + b * P; });
  };
  for_columns<Number>(tall, 0, with_steps, p0, p1, false, to_dh0);
  for_columns<Number>(tall, with_steps, count, p0, p1, false, to_dh0);
  for (int64_t b = s.row_begin; b < s.row_end; ++b)
    for (int64_t j = j0; j < j1; j += lanes<Number>)
      store(f.dc0 + b * H + j, load(f.dcell + b * H + j, j1 - j), j1 - j);
  if (f.streams) finish_streams();
  finish_sums(f, team);
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
