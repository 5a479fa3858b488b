// Declares the engine: the arguments of its passes, plain pointers without tensors, and its table of
// functions.
//
// This header and those it includes are compiled for the baseline of every machine. The sequence loops
// (forward.h, backward.h) are compiled once per instruction set, each time in a namespace of its own, and are
// called through one Engine.
#pragma once

#include <cstdint>

#include "gemm/layout.h"
#include "isa/isa.h"
#include "runtime/threads.h"

namespace lstm_fused {

// The steps of every row. n counts steps in the order of the recurrence, t indexes the tensors.
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

// A row of the batch that takes part in a step, and its operands of the step's GEMM.
template <class scalar_t>
struct Row {
  int64_t b;
  const scalar_t* x;        // forward: x_t [I], null where W_ih x is not fused into the step
  const scalar_t* operand;  // row of A: h_{t-1} [P], or da_{t+1} [4H], null where there is none
};

// A tensor [T, B, N] whose rows are contiguous.
template <class scalar_t>
struct StridedRows {
  const scalar_t* data;
  int64_t t_stride, b_stride;  // in elements

  const scalar_t* at(int64_t t, int64_t b) const { return data + t * t_stride + b * b_stride; }
};

// The optional features of a layer (variant.h).
template <class scalar_t>
struct Variant {
  bool any;
  const scalar_t* gain_hh;          // [4H], or null: no layer norm
  const scalar_t* h_mask;           // [B, P], or null
  StridedRows<scalar_t> zoneout_h;  // [T, B, P], data may be null
  StridedRows<scalar_t> zoneout_c;  // [T, B, H], data may be null
  acc_t<scalar_t> cell_clip;        // infinite: none
};

template <class scalar_t>
struct Forward {
  Sequence sequence;
  int64_t I, H, P;
  // As in Plan.
  int64_t x_steps;
  bool packs, streaming_stores, prefetches;
  int32_t min_rows_per_thread;

  // Inputs, the caller's. All but x are contiguous.
  StridedRows<scalar_t> x;    // [T, B, I]; without weight_ih [T, B, 4H]
  const scalar_t* weight_ih;  // [4H, I], or null
  const scalar_t* weight_hh;  // [4H, P]
  const scalar_t* peephole;   // [3, H], p_i, p_f, p_o, or null
  const scalar_t* weight_hr;  // [P, H], or null: P = H
  const scalar_t* h0;         // [B, P]
  const scalar_t* c0;         // [B, H]
  Variant<scalar_t> variant;

  // Outputs, the caller's, contiguous. The pass writes every element.
  scalar_t* y;      // [T, B, P]
  scalar_t* h_n;    // [B, P]
  scalar_t* c_n;    // [B, H]
  scalar_t* c;      // [T, B, H], or null: nothing is saved
  scalar_t* gates;  // [T, B, 4H], or null with c

  // Workspace, the caller's, 64-byte aligned. Sizes of packed weights are those of Packing.
  scalar_t* packed_ih;                // gates(H, I), unused without weight_ih or packs
  scalar_t* packed_hh;                // gates(H, P), unused without packs
  scalar_t* packed_hr;                // channels(P, H), unused without weight_hr
  const acc_t<scalar_t>* bias;        // [4H], the sum of the biases, or null
  OperandBuffer<scalar_t> x_operand;  // K = I, max(x_steps, 2) slots, unused without weight_ih
  acc_t<scalar_t>* xw;                // [x_steps, B, 4H], W_ih x, unused where x_steps < 2
  OperandBuffer<scalar_t> h_operand;  // K = P
  OperandBuffer<scalar_t> m_operand;  // K = H, o * tanh(c), unused without weight_hr
  acc_t<scalar_t>* c_state;           // [B, H], c of the last step
  acc_t<scalar_t>* hw;                // [B, 4H], W_hh h_{t-1}, unused without gain_hh
  Row<scalar_t>* rows;                // [threads, B]
};

// The factors of a step's products at one valid step of one row of the batch.
template <class scalar_t>
struct ProductRow {
  const scalar_t *dxw, *dhw, *x, *h;  // h is h_{t-1}
  scalar_t* dx;
};

// The products dx = dxw W_ih, dW_ih = dxwᵀ x and dW_hh = dhwᵀ h_{t-1}, over the valid steps of all rows:
// after the backward recurrence (products.h), or for blocks of steps during it (block_products.h).
template <class scalar_t>
struct Products {
  Sequence sequence;
  int64_t M, I, P;  // M = 4H
  // As in ProductsPlan.
  bool packs, outer_products;
  int64_t KC, rows_at_once;

  // Inputs, the caller's.
  const scalar_t* dxw;         // [T, B, M], unused in blocks
  const scalar_t* dhw;         // [T, B, M], may be dxw, unused in blocks
  OperandBuffer<scalar_t> da;  // in place of both, the recurrence's operand rows of all steps, or no data
  const scalar_t* weight_ih;   // [M, I]
  StridedRows<scalar_t> x;     // [T, B, I]
  StridedRows<scalar_t> y;     // [T, B, P]
  const scalar_t* h0;          // [B, P]

  // Outputs, the caller's, contiguous, null if not needed. Every element is written.
  scalar_t* dx;          // [T, B, I]
  scalar_t* dweight_ih;  // [M, I]
  scalar_t* dweight_hh;  // [M, P]

  // Workspace, the caller's, 64-byte aligned.
  scalar_t* packed_ih;  // channels(I, M), for dx, unused without packs

  // threads * rows_at_once rows, K = KC, for dW; in blocks with lengths only
  OperandBuffer<scalar_t> da_operand;

  // The same, after the recurrence.
  OperandBuffer<scalar_t> dxw_operand;  // threads * rows_at_once rows, K = M, for dx; no data: not copied
  scalar_t* packed_rows[2];    // channels(I, KC) + channels(P, KC), x and h_{t-1}, for dW; may be one
  acc_t<scalar_t>* sums_ih;    // [M, I], partial sums; of float32 and float64 dweight_ih itself
  acc_t<scalar_t>* sums_hh;    // [M, P], the same for dweight_hh
  ProductRow<scalar_t>* rows;  // [threads, KC]

  // The same, in blocks of as many steps as Backward::da_operand has slots.
  scalar_t* block_x;                 // channels(I, slots * B)
  scalar_t* block_h;                 // channels(P, slots * B), h_{t-1}
  acc_t<scalar_t>* block_sums_ih;    // [threads, channels(I, M)], partial sums
  acc_t<scalar_t>* block_sums_hh;    // [threads, channels(P, M)], the same
  ProductRow<scalar_t>* block_rows;  // [slots * B]
};

template <class scalar_t>
struct Backward {
  Sequence sequence;
  int64_t H, P;
  // As in Plan.
  bool packs, streaming_stores, prefetches;
  int32_t min_rows_per_thread;

  // Inputs, the caller's. All but dy are contiguous.
  StridedRows<scalar_t> dy;   // [T, B, P], data may be null: zero
  const scalar_t* dh_n;       // [B, P], or null: zero
  const scalar_t* dc_n;       // [B, H], or null: zero
  const scalar_t* c;          // [T, B, H]
  const scalar_t* gates;      // [T, B, 4H]
  const scalar_t* c0;         // [B, H]
  const scalar_t* weight_hh;  // [4H, P]
  const scalar_t* peephole;   // [3, H], or null
  const scalar_t* weight_hr;  // [P, H], or null: P = H
  Variant<scalar_t> variant;
  const acc_t<scalar_t>* hw;  // [T, B, 4H], W_hh h_{t-1}, unused without gain_hh

  // Outputs, the caller's, contiguous. The pass writes every element.
  scalar_t* dxw;        // [T, B, 4H], or null with products, or where da_operand holds all steps
  scalar_t* dhw;        // [T, B, 4H], unused without gain_hh
  scalar_t* dh0;        // [B, P]
  scalar_t* dc0;        // [B, H]
  scalar_t* dbias;      // [4H]
  scalar_t* dpeephole;  // [3, H], zero without peephole

  // What to form of every block of da_operand.slots steps while da is in L2, or null.
  const Products<scalar_t>* products;

  // Workspace, the caller's, 64-byte aligned.
  scalar_t* packed_hh;                 // channels(P, 4H), unused without packs
  scalar_t* packed_hr;                 // channels(H, P), unused without weight_hr
  OperandBuffer<scalar_t> da_operand;  // K = 4H, two slots; those of a block, or of all steps without dxw
  OperandBuffer<scalar_t> dh_operand;  // K = P, unused without weight_hr
  acc_t<scalar_t>* dc_state;           // [B, H], dc of the last step
  acc_t<scalar_t>* dh_zoneout;         // [B, P], the share of dh that skips a step, unused without zoneout_h
  double* sums;   // [threads, 2, 7, width], each thread's dbias and dpeephole, and their rounding errors
  int64_t width;  // H, in whole vectors
  Row<scalar_t>* rows;  // [threads, B]
};

// The engine as compiled for one instruction set.
struct Engine {
  Isa isa;
  void (*forward_float)(const Forward<float>&, const Team&);
  void (*forward_double)(const Forward<double>&, const Team&);
  void (*forward_bfloat16)(const Forward<BFloat16>&, const Team&);
  void (*backward_float)(const Backward<float>&, const Team&);
  void (*backward_double)(const Backward<double>&, const Team&);
  void (*backward_bfloat16)(const Backward<BFloat16>&, const Team&);

  void (*products_float)(const Products<float>&, const Team&);
  void (*products_double)(const Products<double>&, const Team&);
  void (*products_bfloat16)(const Products<BFloat16>&, const Team&);

  void forward(const Forward<float>& args, const Team& team) const { forward_float(args, team); }
  void forward(const Forward<double>& args, const Team& team) const { forward_double(args, team); }
  void forward(const Forward<BFloat16>& args, const Team& team) const { forward_bfloat16(args, team); }
  void backward(const Backward<float>& args, const Team& team) const { backward_float(args, team); }
  void backward(const Backward<double>& args, const Team& team) const { backward_double(args, team); }
  void backward(const Backward<BFloat16>& args, const Team& team) const { backward_bfloat16(args, team); }
  void products(const Products<float>& args, const Team& team) const { products_float(args, team); }
  void products(const Products<double>& args, const Team& team) const { products_double(args, team); }
  void products(const Products<BFloat16>& args, const Team& team) const { products_bfloat16(args, team); }
};

}  // namespace lstm_fused
