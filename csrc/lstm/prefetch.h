// Prefetches what a step is about to wait for: operand rows of other threads, and what its epilogue reads and
// writes in tensors that the caches no longer hold.
#pragma once

#include "gemm/macrokernel.h"
#include "lstm/engine.h"
#include "thresholds.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Fetches a step's operand rows of K elements into L1, where the slice's threads have each written a part.
// always_inline: GCC drops the call of a function that does nothing but prefetch.
template <class scalar_t>
[[gnu::always_inline]] inline void fetch_operands(const Slice& s, const Row<scalar_t>* rows, int64_t count,
                                                  int64_t K) {
  if (s.size == 1 || count * K * static_cast<int64_t>(sizeof(scalar_t)) > max_fetched_bytes) return;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t k = 0; k < K; k += line_elements<scalar_t>) __builtin_prefetch(rows[r].operand + k);
}

// Makes the product of a macro-tile fetch what its epilogue writes of step t. Not with a projection, whose y
// is not the epilogue's.
template <class scalar_t>
void prefetch_step(const Forward<scalar_t>& args, const Row<scalar_t>* rows, MacroTile<scalar_t>& macrotile,
                   int64_t t) {
  const int64_t H = args.H;
  for (int64_t i = 0; i < macrotile.count; ++i) {
    const AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
    const int64_t j0 = tile.first_panel / gate_panels * lanes<scalar_t>;
    const int64_t j1 = min(j0 + tile.panels / gate_panels * lanes<scalar_t>, H);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t tb = t * args.sequence.B + rows[tile.first_row + r].b;
      for (int64_t j = j0; j < j1; j += line_elements<scalar_t>) {
        for (int64_t gate = 0; gate < 4 && !args.streaming_stores; ++gate)
          macrotile.prefetch(args.gates + (tb * 4 + gate) * H + j);
        macrotile.prefetch(args.c + tb * H + j);
        macrotile.prefetch(args.y + tb * H + j);
      }
    }
  }
}

// Makes the product of a macro-tile fetch what its epilogue reads and writes of step t, the n-th.
template <class scalar_t>
void prefetch_step(const Backward<scalar_t>& args, const Row<scalar_t>* rows, MacroTile<scalar_t>& macrotile,
                   int64_t n, int64_t t) {
  const int64_t H = args.H, B = args.sequence.B;
  for (int64_t i = 0; i < macrotile.count; ++i) {
    const AccumulatorTile<scalar_t>& tile = macrotile.tiles[i];
    const int64_t j0 = tile.first_panel * NR<scalar_t>, j1 = min(j0 + tile.panels * NR<scalar_t>, H);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t b = rows[tile.first_row + r].b, tb = t * B + b;
      const int64_t before = t == args.sequence.first(b) ? tb : args.sequence.previous(t) * B + b;
      // In blocks of products the caches hold da.
      const scalar_t* da = args.products ? nullptr
                           : args.dxw    ? args.dxw + tb * 4 * H
                                         : args.da_operand.row(n, b);
      for (int64_t j = j0; j < j1; j += line_elements<scalar_t>) {
        for (int64_t gate = 0; gate < 4; ++gate) {
          macrotile.prefetch(args.gates + (tb * 4 + gate) * H + j);
          if (da && !args.streaming_stores) macrotile.prefetch(da + gate * H + j);
        }
        macrotile.prefetch(args.c + before * H + j);
        if (args.dy.data) macrotile.prefetch(args.dy.at(t, b) + j);
      }
    }
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
