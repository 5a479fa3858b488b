// The LSTM cell, forward and backward, for one vector of channels of one row; equations of reference.py.
#pragma once

#include "lstm/activations.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// p_i, p_f, p_o of a vector of channels. Without peepholes their terms are left out: 0 * inf would be NaN.
template <class Real>
struct Peephole {
  bool present;
  Vec<Real> i, f, o;

  // Channels [j, j + n) of peephole [3, H], or null.
  template <class scalar_t>
  Peephole(const scalar_t* peephole, int64_t H, int64_t j, int64_t n) : present(peephole), i{}, f{}, o{} {
    if (!present) return;
    i = load(peephole + j, n);
    f = load(peephole + H + j, n);
    o = load(peephole + 2 * H + j, n);
  }
};

template <class Real>
struct Gates {
  Vec<Real> i, f, g, o;

  // Channels [j, j + n) of a row [4H]. always_inline, here and below: left to itself the compiler sometimes
  // passes gates through memory, which costs wide's backward pass a tenth.
  template <class scalar_t>
  [[gnu::always_inline]] static Gates from(const scalar_t* row, int64_t H, int64_t j, int64_t n) {
    return {load(row + j, n), load(row + H + j, n), load(row + 2 * H + j, n), load(row + 3 * H + j, n)};
  }
  template <class scalar_t>
  [[gnu::always_inline]] void to(scalar_t* row, int64_t H, int64_t j, int64_t n,
                                 bool streaming = false) const {
    const auto put = [&](scalar_t* to, Vec<Real> v)
                         __attribute__((always_inline)) { streaming ? stream(to, v, n) : store(to, v, n); };
    put(row + j, i);
    put(row + H + j, f);
    put(row + 2 * H + j, g);
    put(row + 3 * H + j, o);
  }
  [[gnu::always_inline]] void operator+=(const Gates& other) {
    i += other.i;
    f += other.f;
    g += other.g;
    o += other.o;
  }
};

template <class Real>
inline Vec<Real> clip(Vec<Real> c, Real bound) {
  return at_least<Real>(at_most<Real>(c, bound), -bound);
}

// The cell up to c_t: turns pre-activations i, f, g into gates and c_{t-1} into c_t; adds o's peephole of
// c_t.
template <bool Clipped, class scalar_t>
inline void update_cell(Gates<acc_t<scalar_t>>& a, Vec<scalar_t>& c, const Peephole<acc_t<scalar_t>>& p,
                        acc_t<scalar_t> bound) {
  using R = acc_t<scalar_t>;
  c = without_subnormals<R>(c);  // not of gates: sigmoid is accurate there
  if (p.present) {
    a.i += p.i * c;
    a.f += p.f * c;
  }
  a.i = sigmoid<scalar_t>(a.i);
  a.f = sigmoid<scalar_t>(a.f);
  a.g = tanh<scalar_t>(a.g);
  c = a.f * c + a.i * a.g;
  if constexpr (Clipped) c = clip<R>(c, bound);
  if (p.present) a.o += p.o * c;
}

// The cell from c_t on: turns the pre-activation o into the gate; returns o * tanh(c_t).
template <class scalar_t>
inline Vec<scalar_t> finish_cell(Gates<acc_t<scalar_t>>& a, Vec<scalar_t> c) {
  a.o = sigmoid<scalar_t>(a.o);
  return a.o * tanh<scalar_t>(c);
}

// The backward cell: returns da, given the gates and the gradient dm of o * tanh(c_t); turns dc_t into
// dc_{t-1}.
template <bool Clipped, class scalar_t>
inline Gates<acc_t<scalar_t>> cell_backward(Vec<scalar_t> dm, Vec<scalar_t>& dc,
                                            const Gates<acc_t<scalar_t>>& gate, Vec<scalar_t> c,
                                            Vec<scalar_t> c_prev, const Peephole<acc_t<scalar_t>>& p,
                                            acc_t<scalar_t> bound) {
  using R = acc_t<scalar_t>;
  const auto [i, f, g, o] = gate;
  const Vec<R> s = tanh<scalar_t>(c);
  Gates<R> da;
  da.o = dm * s * o * (1 - o);
  dc += dm * o * (1 - s * s);
  if (p.present) dc += p.o * da.o;
  if constexpr (Clipped) dc = abs<R>(f * c_prev + i * g) > broadcast(bound) ? Vec<R>{} : dc;
  da.i = dc * g * i * (1 - i);
  da.f = dc * c_prev * f * (1 - f);
  da.g = dc * i * (1 - g * g);
  dc = dc * f;
  if (p.present) dc += p.i * da.i + p.f * da.f;
  return da;
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
