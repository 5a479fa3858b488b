// Decides how one call runs: threads, hoisting of W_ih x, packing, streaming stores.
//
// Decisions are functions of sizes and machine alone, so that the same call gives the same bits every time.
// Their thresholds are in thresholds.h.
#pragma once

#include <cstdint>

#include "isa/isa.h"

namespace lstm_fused {

struct Machine {
  Isa isa;
  int64_t l2_bytes;  // of one core
  int threads;       // that a call may use
};

// One layer in one direction.
struct Sizes {
  int64_t T, B, I, H, P;
  bool weight_ih = true;  // false: x holds W_ih x, and I is unused
};

struct Plan {
  int threads;
  // Threads split the batch if each gets at least so many rows, else they split the channels; 0: always the
  // latter. Splitting rows needs no barrier, but every core reads all weights at every step.
  int32_t min_rows_per_thread;
  bool packs = true;      // W_ih and W_hh are packed
  bool streaming_stores;  // gates or dxw are stored past the caches
  bool prefetches;        // a step's product fetches what its epilogue reads and writes
  int64_t x_steps = 0;    // forward: steps whose W_ih x is computed at once; 1: fused, 0: no weight_ih
  double step_us = 0;     // by the model that chooses the threads, not measured
};

// The products after the recurrence.
struct ProductSizes {
  int64_t K;        // valid steps of all rows
  int64_t M, I, P;  // M = 4H
  bool dx, dweight_ih, dweight_hh;
};

struct ProductsPlan {
  int threads;
  bool outer_products;   // weight gradients are sums of these, without packing
  int64_t KC;            // rows that are packed and multiplied at once
  bool packs = true;     // W_ih is packed
  bool copies_dxw;       // dx multiplies copies of the rows of dxw
  bool double_buffer;    // of x and h_{t-1}
  int64_t rows_at_once;  // operand rows that a thread multiplies at once, a macro-tile's
};

// The recurrence and its products in one call.
struct GradientsPlan {
  Plan backward;
  ProductsPlan products;
  int64_t block_steps;  // steps whose products are formed at once during the recurrence; 0: all, after it
  bool keeps_da;        // products after it take da from the operand rows of all steps, not from dxw
};

// `save`: the pass stores c and gates for the backward pass.
template <class scalar_t>
Plan plan_forward(const Machine& machine, const Sizes& sizes, bool save);

template <class scalar_t>
Plan plan_backward(const Machine& machine, const Sizes& sizes);

template <class scalar_t>
ProductsPlan plan_products(const Machine& machine, const ProductSizes& sizes);

template <class scalar_t>
GradientsPlan plan_gradients(const Machine& machine, const Sizes& sizes, const ProductSizes& products);

}  // namespace lstm_fused
