// Every blocking parameter and threshold of the C++ engine: [unit], meaning, and the measurement behind it.
//
// plan.cpp uses those that depend on a layer's sizes, gemm/ and runtime/ the others. Times are from the AMX
// machine of docs/bench.md; mnist, mid, long, ptb, stream, wide and big are the sizes of bench/cases.py.
// Seven hexadecimal digits name the commit whose message has the measurement; "by trial": no numbers were
// kept.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lstm_fused {

// ---- Threads

// The model of a step with n threads, which chooses n: multiply-adds / n, a barrier if they split channels,
// and the step's part of packing the weights and starting the threads. docs/bench.md, "Threads", has
// measurements.

// [multiply-adds per µs] Rate of one thread: 16,000 to 25,000 on Zen 3. Faster processors take more threads
// than pay: at twice the rate, two from 2 µs instead of 4 µs of work on.
constexpr double products_per_us = 25000;
// [elements per µs] Rate of packing weights on one thread: 2,400 on Zen 3.
constexpr double packed_per_us = 2500;
// [µs] A step's barrier. The last thread to arrive releases two threads on cores of their own within 0.25 µs;
// each thread adds a transfer of the same cache line. 1.5 is for threads that do not arrive together: two pay
// from 4 µs of work on, as by the limit of 50,000 multiply-adds a thread that was here before, by trial.
constexpr double barrier_us(int64_t n) { return n > 1 ? 1.5 + 0.25 * static_cast<double>(n) : 0; }
// [µs] Starting a team, once a call: 2 for two threads that still spin, 70 for two and 130 for three that
// sleep or lack cores.
constexpr double team_start_us(int64_t n) { return n > 1 ? 10 * static_cast<double>(n) : 0; }
// [multiply-adds per thread] Minimum work for another thread in the products after the recurrence, which have
// no barriers: 2 µs, what starting a spinning thread takes.
constexpr int64_t min_products_per_thread = 50000;

// [polls] Spinning of a barrier before it sleeps: 20 µs on Zen 3, 25 on Zen 5, longer than a step's
// imbalance; and where a team has more threads than cores, 1.5 µs.
constexpr int barrier_spins = 1000;
constexpr int crowded_barrier_spins = 64;
// [polls] Spinning of a thread of our own pool for another call before it sleeps: about 40 µs.
constexpr int worker_spins = 2000;

// ---- L2 cache

// [bytes] Maximum size of packed weights that stay in a core's L2 from step to step. Operand rows and
// accumulators need the rest. By trial.
constexpr int64_t l2_budget(int64_t l2_bytes) { return l2_bytes / 4 * 3; }
// [bytes] Assumed size of L2 where the system does not report it.
constexpr int64_t default_l2_bytes = 1 << 20;
// [bytes] Maximum size of a thread's packed weights that a memory-bound micro-kernel does not prefetch into
// L2, because they are there. Without prefetching a core reads 165 instead of 117 GB/s (3964d43). Also of
// those whose product prefetches rows of da instead (wide's dx 1.3 times as fast on Zen 5, mnist's 1.02). A
// constant, older than l2_budget; it affects speed, not results.
constexpr int64_t l2_resident_bytes = 1 << 20;

// [rows] Maximum T × B of a pass that multiplies by the weights in their own layout, because packing them
// takes longer. At T = 1, B = 16, H = 128, one thread of Zen 5, the forward operator takes 37 instead of 44
// µs (avx2 69 and 67), the backward one 23 instead of 28 (avx2 35 and 41); at T = 16, B = 1, which reads them
// 16 times, both as long as packed, but avx2 backward 1.1 times.
constexpr int64_t max_unpacked_rows = 16;
// [rows] The same for dx, whose rows are multiplied at once: 20 instead of 24 µs for 32 rows (avx2 38 and
// 45).
constexpr int64_t max_unpacked_dx_rows = 32;

// ---- The input GEMM, W_ih x: fused into each step, or hoisted and computed for several steps at once

// [rows] Minimum B for fusing, which is then as fast as one GEMM over all steps (abe15b8).
constexpr int64_t min_fused_rows = 6;
// [rows] Steps × B of a hoisted GEMM by vectors. By trial (2c7a5f8).
constexpr int64_t hoisted_rows = 64;
// [rows] The same by AMX, used for weights beyond l2_budget, with at least so many [steps] that share one
// read of the weights: with four, ptb's forward pass in bfloat16 is 1.13 times as fast (32c30a7).
constexpr int64_t hoisted_rows_amx = 128;
constexpr int64_t min_hoisted_steps_amx = 4;

// ---- The products after the recurrence, dx, dW_ih and dW_hh

// [rows] Maximum steps × B of weight gradients that are sums of outer products, without packing. In float32
// on one thread of Emerald Rapids 8 rows take 105 µs, and 9, packed, 142 (H = 256); 28 and 28 (H = 128); 11
// and 11 (H = 64). float64 likewise.
constexpr int64_t max_outer_rows = 8;
// KC [rows]: steps × B whose da, x and h_{t-1} are packed at once and multiplied before the next: a power of
// two, by which a thread's packed da, of so many rows_at_once, take a quarter of L2, within the limits below.
// 256 to 1024 are within 10 % of each other (a8fd710). ptb's products, whose sums of dW take 13 MB, are 1.03
// to 1.04 times as fast with 1024 as with 512 on Emerald Rapids (2 MB of L2), the other sizes' as fast.
constexpr int64_t packed_da_bytes(int64_t l2_bytes) { return l2_bytes / 4; }
constexpr int64_t min_products_kc = 256;
constexpr int64_t max_products_kc = 1024;
// [bytes] Maximum size of the packed x and h_{t-1} of a block for a double buffer, which spares the second of
// a block's two barriers. They and a thread's da have to stay in L2.
constexpr int64_t max_double_buffer_bytes = 1 << 20;
// [bytes] Rows whose distance is a multiple of this fall into the same sets of L1 on x86, whose ways have 4
// KB, and are copied before they are multiplied; for others that takes longer (dx of mnist 170 instead of 142
// µs on Zen 5).
constexpr int64_t l1_way_bytes = 4096;
// [steps] and [rows] Limits of a block whose products are formed during the recurrence, while da is in L2, in
// place of all products after it; the steps are a power of two. With two threads of Emerald Rapids both
// together are 1.19 times as fast at wide (two steps, 256 rows; with 8 steps, beyond L2, 1.12), 1.08 at mnist
// (4, 128; 2 steps of 32 rows 1.02), with one thread 1.10 (2, 512) and 1.06 (4, 256). With up to 1024 rows
// wide's take 1.06 times as long, with up to 256 on one thread 1.12 (no blocks).
constexpr int64_t max_block_steps = 8;
constexpr int64_t min_block_rows = 64;
constexpr int64_t max_block_rows = 512;
// [rows] Minimum rows of a thread for x and h_{t-1} that are multiplied where they lie, each step's alone.
// Packed, those of all steps at once, mnist's gradients (32 rows) take 0.97 of the time, wide's (128) 1.04
// (two threads of Emerald Rapids).
constexpr int64_t min_unpacked_block_rows = 64;
// [rows] Distance of the prefetching of x and h_{t-1} while they are packed: wide's products 1.02 times as
// fast (Zen 5, one thread and two).
constexpr int64_t product_prefetch_distance = 8;
// [k-groups] What is packed of da panel by panel, while the next rows are prefetched: wide's products
// are 1.04 times as fast as with all panels row by row (Zen 5, one thread).
constexpr int64_t pack_da_k_groups = 16;

// ---- Memory

// [bytes] Maximum size of gates (forward) or dxw (backward) that is stored through the caches; larger ones
// are evicted before they are read. Streaming takes a tenth less time at 13 MB (mid) and 33 MB (wide), a
// tenth more at 4 MB (3d5ece3).
constexpr int64_t streaming_min_bytes = 8 << 20;
// [bytes] Minimum size of a vector that is stored past the caches: a line's. The halves of a line that AVX2
// stores at different times go to memory one by one: on Emerald Rapids a training step with AVX2 took 93
// instead of 53 ms at wide, 79 instead of 57 at mid.
constexpr int64_t min_streamed_bytes = 64;
// [bytes] Maximum size of gates or dxw of which the products do not fetch what their epilogues read and
// write. Emerald Rapids, two threads: ptb (7.3 MB) backward 1.07 times as fast with it, forward 1.04; mid (13
// MB) and wide (34 MB) forward 1.02; mnist (3.7 MB) backward .93, forward .98.
constexpr int64_t prefetch_min_bytes = 4 << 20;
// [bytes] Minimum size of a tensor whose memory later calls reuse, and the maximum kept unused. Mapping fresh
// pages took a quarter of mnist's training step and a fifth of wide's (f9ef642); the C library itself keeps
// smaller blocks.
constexpr size_t pool_min_bytes = 64 << 10;
constexpr size_t pool_max_bytes = 256 << 20;
// [bytes] Workspace on the stack. The frames of a call take 85 KB besides, in bfloat16 on AMX 220 KB; threads
// of other programs may have 128 KB (musl) or 512 KB (macOS) of stack.
constexpr int64_t workspace_stack_bytes = 16 << 10;
// [1 / fraction] A reused block may exceed the request by a quarter. By trial.
constexpr size_t pool_slack = 4;
// [bytes] Size of a huge page, and minimum size of a block that asks for them. With 4 KB pages, wide's
// training step took 142 instead of 87 ms (f853d39).
constexpr size_t huge_page_bytes = 2 << 20;

// ---- GEMM blocking: C[M, N] += A[M, K] B[K, N]. A holds rows of the batch, B packed weights by output
// channel. NR, the width of a packed panel, is two vectors of channels

// MR [rows]: height of the vector micro-kernel's register tile, MR × NR, by the number of vector registers.
// Four registers hold a panel's weights and a broadcast element of A, the others are accumulators. NEON takes
// 6 rows × 2 panels: 8 loads for 24 multiply-adds, where 14 rows × 1 panel take 15 for 28 (by disassembly).
constexpr int mr(int registers) { return (registers - 4) / 2; }
// [rows] and [k-groups, pairs of bfloat16] of an AMX tile: the maximum of the architecture.
constexpr int64_t amx_tile_rows = 16;
constexpr int64_t amx_tile_k_groups = 16;
// [rows] Minimum for AMX in bfloat16. With fewer, reading the weights takes longer than vectors need to
// multiply (b1f776a).
constexpr int64_t amx_min_rows = 4;
// NC [panels]: width of a macro-tile, whose rows are loaded once for all its panels: with at least two, the
// backward passes of long and big are 5 to 10 % faster (eb4bf23). Two panels also hold the gates of a vector
// of channels. AMX takes max_nc: mid's forward pass took 7.7 instead of 8.5 ms (5305332), but in float32,
// which no longer uses it; bfloat16 alone was not measured.
constexpr int min_nc = 2;
constexpr int max_nc = 4;
// [panels] Width of the vector micro-kernel, at most NC: more panels for fewer rows, to keep enough
// accumulators in flight. Accumulators and the weights of each pass over a k-group fit in the registers.
constexpr int microkernel_panels(int registers, int rows, int passes) {
  const auto fit = [=](int panels) { return 2 * panels * (rows + passes) <= registers; };
  return fit(max_nc) ? max_nc : fit(2) ? 2 : 1;
}
// Whether the compiler has to be told to keep weights of few rows in vector registers of x86; with more rows
// it does. On Emerald Rapids two rows take 4.7 instead of 7.0 µs for 512 KB of weights in L2 (avx2 8.0
// instead of 11.1), three with four panels 6.0 instead of 9.0; with two panels (avx2) 12.0 instead of 11.6.
constexpr bool keeps_weights(int rows, int panels) { return rows == 2 || (rows == 3 && panels == max_nc); }
// MC [accumulator tiles]: maximum height of a macro-tile; all its tiles use its panels while these are in L2.
// By trial (970d529).
constexpr int MC_tiles = 8;
// KC [k-groups]: maximum depth of a block, which all tiles of a macro-tile multiply before the next, so that
// the block of its panels, at most 512 KB, stays in L2. By trial (970d529).
constexpr int64_t KC = 1024;
// [k-groups] Depth of the blocks of a product, in whole AMX tiles. They are equal because a block prefetches
// the next one's weights, a line with each of its own k-groups, those of a deeper one only in part. ptb's
// backward product ran at 170 instead of 160 GFLOP/s on one thread of Emerald Rapids, of 190.
constexpr int64_t block_depth(int64_t k_groups) {
  const int64_t blocks = k_groups <= KC ? 1 : (k_groups + KC - 1) / KC;
  const int64_t depth = (k_groups + blocks - 1) / blocks;
  return (depth + amx_tile_k_groups - 1) / amx_tile_k_groups * amx_tile_k_groups;
}
// [rows] Maximum of a memory-bound micro-kernel: reading weights takes longer than multiplying them
// (3964d43).
constexpr int64_t memory_bound_rows = 3;
// [k-groups] What is summed in fresh accumulators before these are added to the tile's: shorter chains of
// additions err less. Libraries take few rows as matrix-vector products with many short chains; 16 does too.
// Other sums have equal chains of about 128; on Zen 5 such of 96 and of 256 take the same time.
constexpr int64_t chain_length(int rows, int64_t k_groups) {
  if (rows <= memory_bound_rows) return 16;
  const int64_t chains = k_groups < 192 ? 1 : (k_groups + 64) / 128;
  return (k_groups + chains - 1) / chains;
}
// [rows] Those whose pointers the vector micro-kernel keeps in x86's 16 registers, which more panels need for
// themselves; the others it loads for every k-group. Left to itself the compiler keeps up to three in vector
// registers, which costs 1 % each (Zen 5). Two panels with 2 instead of 5: 157 instead of 141 GFLOP/s for 5
// rows, 166 instead of 161 for 6 (Emerald Rapids, weights in L2).
constexpr int x86_row_pointers(int panels) { return panels > 1 ? 2 : 5; }
// [lines] Maximum of lines that a product is asked for and fetches at once; more would wait for each other.
// wide's backward pass, which asks for 42 with each chain of additions, is 1.05 to 1.08 times as fast; mid's,
// which asks for 16, is not cut: every 32 k-groups it took 1.05 times as long (Zen 5).
constexpr int64_t max_line_burst = 16;
// [bytes] Distance of the prefetching of weights while they are packed. By trial.
constexpr int64_t pack_prefetch_bytes = 256;
// [bytes] Maximum size of operand rows that are fetched into L1 at once before the products of a step, where
// other threads have written a part of them: each line comes from another core's cache, and a product of few
// rows waits for every one. Two threads, Emerald Rapids, backward at H = 256: 1.06 times as fast for one row
// (4 KB), 1.17 for 4, 1.04 for 8, 1.01 for 20 (80 KB); ptb's, with 208 KB, .96.
constexpr int64_t max_fetched_bytes = 32 << 10;
// [k-groups] Distance of the micro-kernel's prefetching of weights; hardware prefetching stops at the end of
// every page. By trial.
constexpr int prefetch_distance = 16;

}  // namespace lstm_fused
