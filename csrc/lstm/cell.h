// One vector of channels of one row through the cell, forward and back; the equations of reference.py.
#pragma once

#include "lstm/activations.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// p_i, p_f, p_o of a vector of channels; without peepholes nothing passes, not even 0 * inf.
template <class Real>
struct Peephole {
  bool present;
  Vec<Real> i, f, o;

  // Channels j .. j + n of peephole [3H], or null.
  template <class Number>
  Peephole(const Number* peephole, int64_t H, int64_t j, int64_t n) : present(peephole), i{}, f{}, o{} {
    if (!present) return;
    i = load(peephole + j, n);
    f = load(peephole + H + j, n);
    o = load(peephole + 2 * H + j, n);
  }
};

template <class Real>
struct Gates {
  Vec<Real> i, f, g, o;

  // Channels j .. j + n of a row [4H]. Inlined by order, here and below: whether the compiler would depends
  // on what else it has inlined, and gates that go by memory cost wide's backward pass a tenth.
  template <class Number>
  [[gnu::always_inline]] static Gates from(const Number* row, int64_t H, int64_t j, int64_t n) {
    return {load(row + j, n), load(row + H + j, n), load(row + 2 * H + j, n), load(row + 3 * H + j, n)};
  }
  template <class Number>
  [[gnu::always_inline]] void to(Number* row, int64_t H, int64_t j, int64_t n,
                                 bool past_caches = false) const {
    const auto put = [&](Number* to, Vec<Real> v)
                         __attribute__((always_inline)) { past_caches ? stream(to, v, n) : store(to, v, n); };
    put(row + j, i);
    put(row + H + j, f);
    put(row + 2 * H + j, g);
    put(row + 3 * H + j, o);
  }
};

template <class Real>
inline Vec<Real> clip(Vec<Real> c, Real bound) {
  const Vec<Real> high = broadcast(bound);
  c = c > high ? high : c;  // NaN stays
  return c < -high ? -high : c;
}

// Turns the pre-activations i, f, g into gates and c_{t-1} into c_t; o gets what it sees of c_t.
template <bool Clipped, class Number>
inline void update_cell(Gates<Real<Number>>& a, Vec<Real<Number>>& c, const Peephole<Real<Number>>& p,
                        Real<Number> bound) {
  using R = Real<Number>;
  c = without_subnormals<R>(c);  // gates keep theirs: sigmoid is right to the smallest of them
  if (p.present) {
    a.i += p.i * c;
    a.f += p.f * c;
  }
  a.i = sigmoid<Number>(a.i);
  a.f = sigmoid<Number>(a.f);
  a.g = tanh<Number>(a.g);
  c = a.f * c + a.i * a.g;
  if constexpr (Clipped) c = clip<R>(c, bound);
  if (p.present) a.o += p.o * c;
}

// Turns the pre-activation o into the gate; returns o * tanh(c_t).
template <class Number>
inline Vec<Real<Number>> show_cell(Gates<Real<Number>>& a, Vec<Real<Number>> c) {
  a.o = sigmoid<Number>(a.o);
  return a.o * tanh<Number>(c);
}

// Returns da from the gates and the gradient dm of o * tanh(c); turns dc_t into dc_{t-1}.
template <bool Clipped, class Number>
inline Gates<Real<Number>> cell_backward(Vec<Real<Number>> dm, Vec<Real<Number>>& dc,
                                         const Gates<Real<Number>>& gate, Vec<Real<Number>> c,
                                         Vec<Real<Number>> c_prev, const Peephole<Real<Number>>& p,
                                         Real<Number> bound) {
  using R = Real<Number>;
  const auto [i, f, g, o] = gate;
  const Vec<R> s = tanh<Number>(c);
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
