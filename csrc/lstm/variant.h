// What a layer does beyond the textbook; the equations of reference.py. Only layers that ask for it come
// here.
#pragma once

#include "lstm/cell.h"
#include "gemm/pack.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// share * before + (1 - share) * after, of one vector.
template <class Real>
inline Vec<Real> mix(Vec<Real> share, Vec<Real> before, Vec<Real> after) {
  return share * before + (1 - share) * after;
}

// h_t from what it is without zoneout, as y holds it: rounded.
template <class Number>
Vec<Real<Number>> zone_out_h(const Forward<Number>& f, int64_t t, int64_t b, int64_t j, int64_t n,
                             Vec<Real<Number>> h) {
  if (!f.variant.zoneout_h.data) return h;
  const Sequence& q = f.sequence;
  const bool starts = t == q.first(b);
  const Number* before = (starts ? f.h0 + b * f.P : f.y + (q.previous(t) * q.B + b) * f.P) + j;
  return mix<Real<Number>>(load(f.variant.zoneout_h.at(t, b) + j, n), load(before, n), h);
}

// Hands h, which memory holds, to the product of the step after `step`, without what recurrent dropout hides.
template <class Number>
void relay_h(const Forward<Number>& f, const Number* h, int64_t step, int64_t b, int64_t j, int64_t n,
             const Relay<Number>& relay) {
  Vec<Real<Number>> v = load(h, n);
  if (f.variant.h_mask) v *= load(f.variant.h_mask + b * f.P + j, n);
  hand_on(relay, relay.at(step, b), j, v, n);
}

// The gradient that reaches h_t in the end, from what W_hh hands back and dy_t; leaves in dh_kept what
// passes by step t. Returns the gradient of h_t without zoneout. Without a step, t < 0, that of h0.
template <class Number>
Vec<Real<Number>> gradient_of_h(const Backward<Number>& f, const Row<Number>& row, int64_t t, int64_t j,
                                Vec<Real<Number>> dh) {
  const int64_t n = f.P - j, at = row.b * f.P + j;
  if (row.in && f.variant.h_mask) dh *= load(f.variant.h_mask + at, n);
  const bool zoned = f.variant.zoneout_h.data;
  if (row.in && zoned) dh += load(f.dh_kept + at, n);
  if (t < 0) return dh;
  if (f.dy.data) dh += load(f.dy.at(t, row.b) + j, n);
  if (!zoned) return dh;
  const Vec<Real<Number>> share = load(f.variant.zoneout_h.at(t, row.b) + j, n);
  store(f.dh_kept + at, share * dh, n);
  return (1 - share) * dh;
}

// The layer norm of rows of 4H numbers.
template <class Real>
struct Norm {
  Real mean, rstd;

  Norm(const Real* row, int64_t count) {
    Vec<Real> sums = {}, squares = {};
    const int64_t whole = count / lanes<Real> * lanes<Real>;
    for (int64_t j = 0; j < whole; j += lanes<Real>) sums += load(row + j);
    mean = (sum(sums) + tail(row, whole, count, [](Real x) { return x; })) / count;
    for (int64_t j = 0; j < whole; j += lanes<Real>) {
      const Vec<Real> centred = load(row + j) - mean;
      squares += centred * centred;
    }
    const Real all = sum(squares) + tail(row, whole, count, [&](Real x) { return (x - mean) * (x - mean); });
    rstd = 1 / __builtin_sqrt(all / count + Real(1e-5));
  }

  static Real sum(Vec<Real> v) {
    Real total = 0;
    for (int lane = 0; lane < lanes<Real>; ++lane) total += v[lane];
    return total;
  }
  template <class Of>
  static Real tail(const Real* row, int64_t first, int64_t count, Of of) {
    Real total = 0;
    for (int64_t j = first; j < count; ++j) total += of(row[j]);
    return total;
  }
  Vec<Real> operator()(Vec<Real> v) const { return (v - mean) * rstd; }
};

// The layer norm of this thread's share of the rows, in place.
template <class Number>
void normalize(const Forward<Number>& f, const Slice& s, const Row<Number>* rows, int64_t count) {
  for (int64_t r = s.begin(count); r < s.end(count); ++r) {
    Real<Number>* row = f.hw + rows[r].b * 4 * f.H;
    const Norm<Real<Number>> norm(row, 4 * f.H);
    for (int64_t j = 0; j < 4 * f.H; j += lanes<Number>) {
      const int64_t n = 4 * f.H - j;
      store(row + j, norm(load(row + j, n)) * load(f.variant.gain_hh + j, n), n);
    }
  }
}

// Adds what the layer norm made of W_hh h_{t-1} to the tile's sums.
template <class Number>
void add_normalized(const Forward<Number>& f, const Row<Number>* rows, Tile<Number>& tile) {
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.panel0 + p) / gate_panels * lanes<Number>;
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t r = 0; r < tile.rows; ++r) {
        Real<Number>* to = tile.at(r, p) + gate * lanes<Number>;
        const Real<Number>* from = f.hw + (rows[tile.row + r].b * 4 + gate) * f.H + j;
        store(to, load(to) + load(from, f.H - j));
      }
  }
}

// Back through the layer norm: da of this thread's share of the rows becomes, where the next product finds
// it, the gradient of W_hh h_{t-1}.
template <class Number>
void denormalize(const Backward<Number>& f, const Slice& s, int64_t n, int64_t t, const Row<Number>* rows,
                 int64_t count) {
  using Norm = Norm<Real<Number>>;
  const int64_t N = 4 * f.H;
  for (int64_t r = s.begin(count); r < s.end(count); ++r) {
    const int64_t b = rows[r].b, tb = t * f.sequence.B + b;
    const Real<Number>* hw = f.hw + tb * N;
    Number* da = f.da.at(n, b);
    const Norm norm(hw, N);
    const auto scaled = [&](int64_t j) { return load(da + j, N - j) * load(f.variant.gain_hh + j, N - j); };
    Vec<Real<Number>> sums = {}, products = {};  // past N both factors read as zero
    for (int64_t j = 0; j < N; j += lanes<Number>) {
      sums += scaled(j);
      products += scaled(j) * norm(load(hw + j, N - j));
    }
    const Real<Number> mean = Norm::sum(sums) / N, along = Norm::sum(products) / N;
    for (int64_t j = 0; j < N; j += lanes<Number>) {
      const Vec<Real<Number>> d = (scaled(j) - mean - norm(load(hw + j, N - j)) * along) * norm.rstd;
      store(da + j, d, N - j);
      store(f.dhw + tb * N + j, d, N - j);
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
