// The optional features of a layer: zoneout, recurrent dropout, layer norm; equations of reference.py. A
// plain layer runs only store_h_operand, for h0.
#pragma once

#include "gemm/microkernel.h"
#include "lstm/cell.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// share * before + (1 - share) * after.
template <class Real>
inline Vec<Real> mix(Vec<Real> share, Vec<Real> before, Vec<Real> after) {
  return share * before + (1 - share) * after;
}

// Zoneout of h_t; `before` is h_{t-1} as y holds it, rounded.
template <class scalar_t>
Vec<scalar_t> zone_out_h(const Forward<scalar_t>& args, int64_t t, int64_t b, int64_t j, int64_t n,
                         Vec<scalar_t> h) {
  if (!args.variant.zoneout_h.data) return h;
  const Sequence& q = args.sequence;
  const bool starts = t == q.first(b);
  const scalar_t* before = (starts ? args.h0 + b * args.P : args.y + (q.previous(t) * q.B + b) * args.P) + j;
  return mix<acc_t<scalar_t>>(load(args.variant.zoneout_h.at(t, b) + j, n), load(before, n), h);
}

// Stores h, a row in memory, to the operand of the step after `step`, multiplied by the mask of recurrent
// dropout.
template <class scalar_t>
void store_h_operand(const Forward<scalar_t>& args, const scalar_t* h, int64_t step, int64_t b, int64_t j,
                     int64_t n, const OperandBuffer<scalar_t>& operand) {
  Vec<scalar_t> v = load(h, n);
  if (args.variant.h_mask) v *= load(args.variant.h_mask + b * args.P + j, n);
  store(operand.row(step, b) + j, v, n);
}

// Completes the gradient of h_t, given da_{t+1} W_hh: adds dy_t and the share that skipped the next step by
// zoneout. Stores the share that skips step t in dh_zoneout and returns the rest. t < 0: the gradient of h0.
template <class scalar_t>
Vec<scalar_t> gradient_of_h(const Backward<scalar_t>& args, const Row<scalar_t>& row, int64_t t, int64_t j,
                            Vec<scalar_t> dh) {
  const int64_t n = args.P - j, at = row.b * args.P + j;
  if (row.operand && args.variant.h_mask) dh *= load(args.variant.h_mask + at, n);
  const bool zoned = args.variant.zoneout_h.data;
  if (row.operand && zoned) dh += load(args.dh_zoneout + at, n);
  if (t < 0) return dh;
  if (args.dy.data) dh += load(args.dy.at(t, row.b) + j, n);
  if (!zoned) return dh;
  const Vec<scalar_t> share = load(args.variant.zoneout_h.at(t, row.b) + j, n);
  store(args.dh_zoneout + at, share * dh, n);
  return (1 - share) * dh;
}

// The statistics of layer norm over a row of `count` elements.
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

// Normalises this thread's share of the rows of W_hh h_{t-1}, in place.
template <class scalar_t>
void normalize(const Forward<scalar_t>& args, const Slice& s, const Row<scalar_t>* rows, int64_t count) {
  for (int64_t r = s.begin(count); r < s.end(count); ++r) {
    acc_t<scalar_t>* row = args.hw + rows[r].b * 4 * args.H;
    const Norm<acc_t<scalar_t>> norm(row, 4 * args.H);
    for (int64_t j = 0; j < 4 * args.H; j += lanes<scalar_t>) {
      const int64_t n = 4 * args.H - j;
      store(row + j, norm(load(row + j, n)) * load(args.variant.gain_hh + j, n), n);
    }
  }
}

// Adds the normalised W_hh h_{t-1} to the accumulators.
template <class scalar_t>
void add_normalized(const Forward<scalar_t>& args, const Row<scalar_t>* rows,
                    AccumulatorTile<scalar_t>& tile) {
  for (int64_t p = 0; p < tile.panels; p += gate_panels) {
    const int64_t j = (tile.first_panel + p) / gate_panels * lanes<scalar_t>;
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t r = 0; r < tile.rows; ++r) {
        acc_t<scalar_t>* to = tile.at(r, p) + gate * lanes<scalar_t>;
        const acc_t<scalar_t>* from = args.hw + (rows[tile.first_row + r].b * 4 + gate) * args.H + j;
        store(to, load(to) + load(from, args.H - j));
      }
  }
}

// The backward pass of layer norm: replaces da, in this thread's share of the operand rows, by the gradient
// of W_hh h_{t-1}.
template <class scalar_t>
void denormalize(const Backward<scalar_t>& args, const Slice& s, int64_t n, int64_t t,
                 const Row<scalar_t>* rows, int64_t count) {
  using Norm = Norm<acc_t<scalar_t>>;
  const int64_t N = 4 * args.H;
  for (int64_t r = s.begin(count); r < s.end(count); ++r) {
    const int64_t b = rows[r].b, tb = t * args.sequence.B + b;
    const acc_t<scalar_t>* hw = args.hw + tb * N;
    scalar_t* da = args.da_operand.row(n, b);
    const Norm norm(hw, N);
    const auto scaled = [&](int64_t j) {
      return load(da + j, N - j) * load(args.variant.gain_hh + j, N - j);
    };
    Vec<scalar_t> sums = {}, products = {};  // lanes past N read as zero
    for (int64_t j = 0; j < N; j += lanes<scalar_t>) {
      sums += scaled(j);
      products += scaled(j) * norm(load(hw + j, N - j));
    }
    const acc_t<scalar_t> mean = Norm::sum(sums) / N, along = Norm::sum(products) / N;
    for (int64_t j = 0; j < N; j += lanes<scalar_t>) {
      const Vec<scalar_t> d = (scaled(j) - mean - norm(load(hw + j, N - j)) * along) * norm.rstd;
      store(da + j, d, N - j);
      store(args.dhw + tb * N + j, d, N - j);
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
