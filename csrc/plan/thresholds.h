// Every blocking parameter and threshold of the C++ engine: unit, meaning and the measurement behind it.
//
// plan.cpp uses those that depend on a layer's sizes; gemm/ uses those of the blocking, which are
// compile-time constants of each instruction set. Unless a comment says otherwise, times are from the AMX
// machine of docs/bench.md; mnist, mid, long, ptb, stream, wide and big are the sizes of bench/sizes.py, and
// seven hex digits name the commit that made the measurement. "By trial" means that no numbers were kept.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lstm_fused {

// Threads.

// Multiply-adds per step and thread. About 2 µs of work: below that, one more thread costs more than it
// saves.
constexpr int64_t min_products_per_thread = 50000;
// Polls of a barrier before it yields: about 20 µs, more than a step's imbalance, less than a time slice.
constexpr int barrier_spins = 1000;

// L2 cache.

// Bytes of a core's L2 that packed weights may fill and still be there at the next step; operand rows and
// accumulators take the rest (by trial).
constexpr int64_t l2_budget(int64_t l2_bytes) { return l2_bytes / 4 * 3; }
// Bytes of L2 where the system does not tell.
constexpr int64_t default_l2_bytes = 1 << 20;
// Bytes of one thread's packed weights up to which the micro-kernel does not prefetch them into L2, if at
// most memory_bound_rows use them: without prefetching one core reads 165 instead of 117 GB/s, and stream's
// forward pass takes 2.1 instead of 2.65 ms (3964d43). Not l2_budget: the constant is older than the query.
constexpr int64_t l2_resident_bytes = 1 << 20;

// The input GEMM, W_ih x: fused into the step, or hoisted out of it and computed for several steps at once.

// Rows from which on it is fused, which is then as fast as one GEMM over all steps (abe15b8).
constexpr int64_t min_fused_rows = 6;
// Rows (steps × B) of a hoisted GEMM by vectors (by trial).
constexpr int64_t hoisted_rows = 64;
// The same by AMX, whose larger rate needs more rows for each read of weights from beyond L2. At least so
// many steps must share a read: four make ptb's forward pass in bfloat16 1.13 times as fast (32c30a7).
constexpr int64_t hoisted_rows_amx = 128;
constexpr int64_t min_hoisted_steps_amx = 4;

// The bf16x3 split of float32, which AMX multiplies 2.5 times as fast as vectors multiply float32 (d3e034d),
// but whose weights take 6 instead of 4 bytes.

// Rows from which on the split is faster where one thread's weights fit in l2_budget, where half of them do,
// and otherwise. With 24 in the middle, on one thread: mid's forward pass 14.8 instead of 20.5 ms, with two
// threads the backward pass of B = 32, H = 420 11.1 instead of 15.5 ms (d1c854e). 12 and 48: d3e034d.
constexpr int64_t bf16x3_min_rows_l2 = 12;
constexpr int64_t bf16x3_min_rows_half_l2 = 24;
constexpr int64_t bf16x3_min_rows_beyond_l2 = 48;
// Rows of all steps (T × B) that pay for the slower packing (d3e034d).
constexpr int64_t bf16x3_min_total_rows = 128;
// Elements by which split weights may exceed plain ones, given the elements of y. Without gradients half of y
// keeps the peak below that of torch.nn.LSTM, which holds a second y. A pass that saves holds five y more and
// may take two: without a limit ptb's training step peaked a quarter higher for 2 % of its time (382aa03).
constexpr int64_t bf16x3_max_extra(int64_t y, bool save) { return save ? 2 * y : y / 2; }

// Memory.

// Bytes of gates (forward) or dxw (backward) above which they are stored past the caches, which could not
// hold them until they are read: a tenth less time at 13 MB (mid) and 33 MB (wide), a tenth more at 4 MB
// (3d5ece3).
constexpr int64_t streaming_min_bytes = 8 << 20;
// Bytes of a tensor from which on its memory is reused by later calls, and the most that is kept unused: the
// tensors of a layer of the larger sizes. Mapping fresh pages took a quarter of mnist's training step and a
// fifth of wide's (f9ef642). The C library keeps smaller blocks itself.
constexpr size_t pool_min_bytes = 64 << 10;
constexpr size_t pool_max_bytes = 256 << 20;
// A reused block may exceed the request by one part in so many (by trial).
constexpr size_t pool_slack = 4;
// Bytes from which on huge pages are asked for: mapping wide's 33 MB by 4 KB took as long as computing them,
// 142 instead of 87 ms for a training step (f853d39).
constexpr size_t huge_page_bytes = 2 << 20;

// GEMM blocking. C[M, N] += A[M, K] B[K, N]: A holds rows of the batch, B packed weights, N output channels.

// MR, rows: the tallest register tile of the vector micro-kernel. Its accumulators are MR × NR, and four
// registers are left for a panel's weights and a broadcast element of A. NR, channels, is two vectors: one
// packed panel, or two of the four gates of a vector of channels.
constexpr int accumulators(int registers) { return registers - 4; }
constexpr int mr(int registers) { return accumulators(registers) / 2; }
// Rows of an AMX tile, and k-groups (pairs of bfloat16) of one: the architecture's maximum of both.
constexpr int64_t amx_tile_rows = 16;
constexpr int64_t amx_tile_k_groups = 16;
// Rows from which on AMX is used for bfloat16: with fewer, reading weights takes longer than multiplying, by
// vectors too (b1f776a).
constexpr int64_t amx_min_rows = 4;
// Panels that the vector micro-kernel multiplies at a time: more of them for fewer rows, to keep the number
// of independent accumulators up.
constexpr int max_panels = 4;
constexpr int microkernel_panels(int registers, int rows) {
  return rows * 8 <= accumulators(registers) ? max_panels : rows * 4 <= accumulators(registers) ? 2 : 1;
}
// Panels of a macro-tile at least: rows are then loaded once for both, which makes the backward sweeps of
// long and big 5 to 10 % faster (eb4bf23), and two panels hold the four gates of a vector of channels.
constexpr int min_macrotile_panels = 2;
// Register tiles, stacked along rows, of a macro-tile at most: all use the same panels while these are in L2.
// MC = 8 × MR. By AMX mid's forward pass takes 7.7 instead of 8.5 ms (5305332).
constexpr int max_macrotile_tiles = 8;
// KC, k-groups that all tiles of a macro-tile multiply before the next: its panels, at most 512 KB, stay in
// L2.
constexpr int64_t KC = 1024;
// The same for bf16x3. The rows of a short block stay in L1 while all panels of the macro-tile pass; for sums
// of at least bf16x3_long_k elements, storing the accumulators that often costs more: with long blocks big's
// backward pass takes 98 instead of 138 ms (5305332).
constexpr int64_t bf16x3_short_kc = 32;
constexpr int64_t bf16x3_long_kc = 512;
constexpr int64_t bf16x3_long_k = 1024;
// Rows up to which reading weights, not multiplying them, bounds the micro-kernel.
constexpr int64_t memory_bound_rows = 3;
// k-groups that are summed in a fresh accumulator before it joins the total: a shorter chain of additions
// errs less. Libraries take few rows as matrix-vector products with many short chains; 16 is as accurate.
constexpr int64_t chain_length(int rows) { return rows <= memory_bound_rows ? 16 : 128; }
// k-groups by which the micro-kernel prefetches weights ahead: hardware prefetching stops at each page's end
// (by trial).
constexpr int prefetch_distance = 16;

}  // namespace lstm_fused
