// What the engine is given and what it leaves behind: plain pointers, no tensors.
//
// Everything here is compiled before any instruction set is chosen, so that it runs on every machine; the
// sequence loops (forward.h, backward.h) are compiled once per set, each into a namespace of its own, and
// reached through one Engine.
#pragma once

#include <cstdint>

#include "team.h"

namespace lstm_fused {

// The steps of every row, in the order in which the recurrence meets them.
struct Sequence {
  int64_t T;
  int64_t B;
  bool reverse;
  const int64_t* lengths;  // [B], or null: every row has T steps

  int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  int64_t step(int64_t n) const { return reverse ? T - 1 - n : n; }
  int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t next(int64_t t) const { return reverse ? t - 1 : t + 1; }
  int64_t first(int64_t b) const { return reverse ? length(b) - 1 : 0; }
  int64_t last(int64_t b) const { return reverse ? 0 : length(b) - 1; }
};

// A row that takes part in a step, and where its factors for that step lie.
template <class Real>
struct Row {
  int64_t b;
  const Real* x;   // forward: x_t [I]
  const Real* in;  // forward: h_{t-1} [P]; backward: da_{t+1} [4H]
};

// A tensor's [T, B] of contiguous rows, which may lie apart.
template <class Real>
struct Rows {
  const Real* data;
  int64_t step;  // elements from one t to the next
  int64_t row;   // elements from one b to the next

  const Real* at(int64_t t, int64_t b) const { return data + t * step + b * row; }
};

template <class Real>
struct Forward {
  Sequence sequence;
  int64_t I, H, P;
  bool x_in_step;  // W_ih x is formed inside the step, not found in xw

  // Inputs, the caller's. All but x are contiguous.
  Rows<Real> x;           // [T, B, I]
  const Real* xw;         // [T, B, 4H], W_ih x + bias of all steps; unused with x_in_step
  const Real* weight_ih;  // [4H, I]
  const Real* weight_hh;  // [4H, P]
  const Real* bias;       // [4H], or null
  const Real* peephole;   // [3H], p_i, p_f, p_o, or null
  const Real* weight_hr;  // [P, H], or null: P = H
  const Real* h0;         // [B, P]
  const Real* c0;         // [B, H]

  // Outputs, the caller's, contiguous, every element written.
  Real* y;      // [T, B, P]
  Real* h_n;    // [B, P]
  Real* c_n;    // [B, H], holds the running c during the call
  Real* c;      // [T, B, H], or null: nothing is saved
  Real* gates;  // [T, B, 4H], or null with c

  // Workspace, the caller's, 64-byte aligned. Sizes in elements, by Packing below.
  Real* packed_ih;  // Packing::gates(H, I), unused without x_in_step
  Real* packed_hh;  // Packing::gates(H, P)
  Real* packed_hr;  // Packing::channels(P, H), unused without weight_hr
  Real* m;          // [B, H], o * tanh(c), unused without weight_hr
  Row<Real>* rows;  // [threads, B]
};

template <class Real>
struct Backward {
  Sequence sequence;
  int64_t H, P;

  // Inputs, the caller's. All but dy are contiguous.
  Rows<Real> dy;          // [T, B, P], data may be null: zero
  const Real* dh_n;       // [B, P], or null: zero
  const Real* dc_n;       // [B, H], or null: zero
  const Real* c;          // [T, B, H]
  const Real* gates;      // [T, B, 4H]
  const Real* c0;         // [B, H]
  const Real* weight_hh;  // [4H, P]
  const Real* peephole;   // [3H], or null
  const Real* weight_hr;  // [P, H], or null: P = H

  // Outputs, the caller's, contiguous, every element written.
  Real* dxw;  // [T, B, 4H]
  Real* dh0;  // [B, P]
  Real* dc0;  // [B, H], holds the running dc during the call

  // Workspace, the caller's, 64-byte aligned.
  Real* packed_hh;  // Packing::channels(P, 4H)
  Real* packed_hr;  // Packing::channels(H, P), unused without weight_hr
  Real* dh;         // [B, P], unused without weight_hr
  Row<Real>* rows;  // [threads, B]
};

// How large packed weights are. A panel is two vectors of outputs by the whole inner dimension.
struct Packing {
  int64_t lanes;  // of one vector

  int64_t gates(int64_t H, int64_t K) const { return (H + lanes - 1) / lanes * 4 * lanes * K; }
  int64_t channels(int64_t N, int64_t K) const { return (N + 2 * lanes - 1) / (2 * lanes) * 2 * lanes * K; }
};

// The engine as compiled for one instruction set.
struct Engine {
  const char* isa;
  int64_t vector_bytes;
  void (*forward_float)(const Forward<float>&, const Team&);
  void (*forward_double)(const Forward<double>&, const Team&);
  void (*backward_float)(const Backward<float>&, const Team&);
  void (*backward_double)(const Backward<double>&, const Team&);

  void forward(const Forward<float>& f, const Team& team) const { forward_float(f, team); }
  void forward(const Forward<double>& f, const Team& team) const { forward_double(f, team); }
  void backward(const Backward<float>& b, const Team& team) const { backward_float(b, team); }
  void backward(const Backward<double>& b, const Team& team) const { backward_double(b, team); }
};

}  // namespace lstm_fused
