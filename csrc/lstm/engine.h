// What the engine is given and what it leaves behind: plain pointers, no tensors.
//
// Everything here is compiled before any instruction set is chosen, so that it runs on every machine; the
// sequence loops (forward.h, backward.h) are compiled once per set, each into a namespace of its own, and
// reached through one Engine.
#pragma once

#include <cstdint>

#include "gemm/layout.h"
#include "runtime/threads.h"

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
template <class Number>
struct Row {
  int64_t b;
  const Number* x;   // forward: x_t [I], null where W_ih x is not formed inside the step
  const Number* in;  // forward: h_{t-1} [P]; backward: da_{t+1} [4H], null where there is none
};

// A tensor's [T, B] of contiguous rows, which may lie apart.
template <class Number>
struct Rows {
  const Number* data;
  int64_t step;  // elements from one t to the next
  int64_t row;   // elements from one b to the next

  const Number* at(int64_t t, int64_t b) const { return data + t * step + b * row; }
};

// What step n leaves to the next, in slots used in turn: [slots, B, row_stride(N)], zero past N. Of slots
// there are a power of two. In parts, a row of floats is float_parts rows of bfloat16.
template <class Number>
struct Relay {
  Number* data;
  int64_t B, N, slots = 2;
  bool in_parts = false;

  int64_t stride() const {
    constexpr int64_t in_number = sizeof(Number) / sizeof(BFloat16);
    return in_parts ? float_parts * row_stride<BFloat16>(N) / in_number : row_stride<Number>(N);
  }
  int64_t size() const { return slots * B * stride(); }
  Number* at(int64_t n, int64_t b) const { return data + ((n & (slots - 1)) * B + b) * stride(); }
};

// What a layer does beyond the textbook.
template <class Number>
struct Variant {
  bool any;
  const Number* gain_hh;   // [4H], or null: no layer norm
  const Number* h_mask;    // [B, P], or null
  Rows<Number> zoneout_h;  // [T, B, P], data may be null
  Rows<Number> zoneout_c;  // [T, B, H], data may be null
  Real<Number> cell_clip;  // infinite: none
};

template <class Number>
struct Forward {
  Sequence sequence;
  int64_t I, H, P;
  int64_t x_steps;  // steps whose W_ih x is formed at a time, a power of two; 1: inside each step, 0: never
  bool streams;     // gates are stored past the caches

  // Inputs, the caller's. All but x are contiguous.
  Rows<Number> x;           // [T, B, I]; without weight_ih [T, B, 4H]
  const Number* weight_ih;  // [4H, I], or null
  const Number* weight_hh;  // [4H, P]
  const Number* bias;       // [4H], or null
  const Number* peephole;   // [3H], p_i, p_f, p_o, or null
  const Number* weight_hr;  // [P, H], or null: P = H
  const Number* h0;         // [B, P]
  const Number* c0;         // [B, H]
  Variant<Number> variant;

  // Outputs, the caller's, contiguous, every element written.
  Number* y;      // [T, B, P]
  Number* h_n;    // [B, P]
  Number* c_n;    // [B, H]
  Number* c;      // [T, B, H], or null: nothing is saved
  Number* gates;  // [T, B, 4H], or null with c

  // Workspace, the caller's, 64-byte aligned. Sizes in elements, of packed weights by Packing below.
  Number* packed_ih;     // Packing::gates(H, I), unused without weight_ih
  Number* packed_hh;     // Packing::gates(H, P)
  Number* packed_hr;     // Packing::channels(P, H), unused without weight_hr
  Relay<Number> x_next;  // of N = I, in x_steps slots or two, unused without weight_ih
  Real<Number>* xw;      // [x_steps, B, 4H], W_ih x, unused where x_steps < 2
  Relay<Number> h;       // of N = P
  Relay<Number> m;       // of N = H, o * tanh(c), unused without weight_hr
  Real<Number>* cell;    // [B, H], c of the last step
  Real<Number>* hw;      // [B, 4H], W_hh h_{t-1}, unused without gain_hh
  Row<Number>* rows;     // [threads, B]
};

template <class Number>
struct Backward {
  Sequence sequence;
  int64_t H, P;
  bool streams;  // dxw is stored past the caches

  // Inputs, the caller's. All but dy are contiguous.
  Rows<Number> dy;          // [T, B, P], data may be null: zero
  const Number* dh_n;       // [B, P], or null: zero
  const Number* dc_n;       // [B, H], or null: zero
  const Number* c;          // [T, B, H]
  const Number* gates;      // [T, B, 4H]
  const Number* c0;         // [B, H]
  const Number* weight_hh;  // [4H, P]
  const Number* peephole;   // [3H], or null
  const Number* weight_hr;  // [P, H], or null: P = H
  Variant<Number> variant;
  const Real<Number>* hw;  // [T, B, 4H], W_hh h_{t-1}, unused without gain_hh

  // Outputs, the caller's, contiguous, every element written.
  Number* dxw;        // [T, B, 4H]
  Number* dhw;        // [T, B, 4H], unused without gain_hh
  Number* dh0;        // [B, P]
  Number* dc0;        // [B, H]
  Number* dbias;      // [4H]
  Number* dpeephole;  // [3H], zero without peephole

  // Workspace, the caller's, 64-byte aligned.
  Number* packed_hh;      // Packing::channels(P, 4H)
  Number* packed_hr;      // Packing::channels(H, P), unused without weight_hr
  Relay<Number> da;       // of N = 4H
  Relay<Number> dh;       // of N = P, unused without weight_hr
  Real<Number>* dcell;    // [B, H], dc of the last step
  Real<Number>* dh_kept;  // [B, P], what passes by the last step, unused without zoneout_h
  double* sums;           // [threads, 2, 7, width], dbias and dpeephole of its rows, and what they lost
  int64_t width;          // H, in whole vectors
  Row<Number>* rows;      // [threads, B]
};

// How large packed weights are. A panel is two vectors of outputs by the whole inner dimension.
template <class Number>
struct Packing {
  int64_t lanes;  // of one vector

  int64_t gates(int64_t H, int64_t K, bool in_parts = false) const {
    return (H + lanes - 1) / lanes * 4 * lanes * depth<Number>(K, in_parts);
  }
  int64_t channels(int64_t N, int64_t K, bool in_parts = false) const {
    return (N + 2 * lanes - 1) / (2 * lanes) * 2 * lanes * depth<Number>(K, in_parts);
  }
};

// The engine as compiled for one instruction set.
struct Engine {
  const char* isa;
  int64_t vector_bytes;
  bool in_parts;  // floats can be multiplied in parts
  void (*forward_float)(const Forward<float>&, const Team&);
  void (*forward_double)(const Forward<double>&, const Team&);
  void (*forward_bfloat16)(const Forward<BFloat16>&, const Team&);
  void (*backward_float)(const Backward<float>&, const Team&);
  void (*backward_double)(const Backward<double>&, const Team&);
  void (*backward_bfloat16)(const Backward<BFloat16>&, const Team&);

  void forward(const Forward<float>& f, const Team& team) const { forward_float(f, team); }
  void forward(const Forward<double>& f, const Team& team) const { forward_double(f, team); }
  void forward(const Forward<BFloat16>& f, const Team& team) const { forward_bfloat16(f, team); }
  void backward(const Backward<float>& b, const Team& team) const { backward_float(b, team); }
  void backward(const Backward<double>& b, const Team& team) const { backward_double(b, team); }
  void backward(const Backward<BFloat16>& b, const Team& team) const { backward_bfloat16(b, team); }
};

}  // namespace lstm_fused
