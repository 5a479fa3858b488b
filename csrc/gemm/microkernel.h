// The vector micro-kernel: rows of A times packed panels of weights, accumulated in registers.
#pragma once

#include "gemm/layout.h"
#include "isa/simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Blocking of this instruction set; what the parameters mean is in thresholds.h.
#ifdef LSTM_FUSED_MR
constexpr int MR = LSTM_FUSED_MR;
#else
constexpr int MR = mr(LSTM_FUSED_REGISTERS);
#endif
template <class scalar_t>
constexpr int NR = 2 * lanes<scalar_t>;
constexpr int gate_panels = 2;  // i and f, g and o of one vector of channels
// Without x86's operands in memory, the weights of both passes over VNNI pairs take registers.
#ifdef __x86_64__
template <class scalar_t>
constexpr int weight_passes = 1;
constexpr int row_pointers(int panels) { return x86_row_pointers(panels); }
#else
template <class scalar_t>
constexpr int weight_passes = KGroup<scalar_t>::passes;
constexpr int row_pointers(int) { return MR; }
#endif
template <class scalar_t>
constexpr int panels_for(int rows) {
  return microkernel_panels(LSTM_FUSED_REGISTERS, rows, weight_passes<scalar_t>);
}

// Rows of the tallest tile: of an AMX tile, where AMX multiplies this type.
template <class scalar_t>
constexpr bool by_amx = has_amx && k_pack<scalar_t> == 2;
template <class scalar_t>
constexpr int64_t tile_rows = by_amx<scalar_t> ? amx_tile_rows : MR;

constexpr bool has_few_rows(int64_t rows) { return rows <= memory_bound_rows; }

// One product of a sum, A times B over k-groups [k_begin, k_end). B is panels [K, NR] that are `panel_stride`
// apart, their k-groups `k_stride`. Meanwhile each k-group of a panel prefetches the next `prefetch_bytes`
// into L2, beginning for each panel `prefetch_stride` bytes after the one before. With few rows, 0 means that
// the weights are in L2 already: all prefetching is then left to the hardware.
template <class scalar_t>
struct Product {
  const scalar_t* const* rows;  // of A
  int64_t k_major_stride;       // elements from one k-group of A to the next, if A is k-major
  int64_t k_begin, k_end;
  const scalar_t* weights;  // k-group 0 of the first panel
  int64_t panel_stride, k_stride;
  const char* prefetch;
  int64_t prefetch_bytes, prefetch_stride;
};

// Cache lines that products fetch into L2 for what comes after them, `each` with every `interval` k-groups;
// with few rows none, as memory is busy then.
struct LineQueue {
  const char *const *next = nullptr, *const *end = nullptr;
  int64_t each = 0, interval = 0;

  void prefetch() {
    for (int64_t n = 0; n < each && next < end; ++n) __builtin_prefetch(*next++, 0, 2);
  }
};

// Adds the sum of products to accumulators with leading dimension `stride`, or stores it if they are `fresh`.
// A has Rows rows, B V vectors from `panel` on: whole panels, or half of one. With KMajor, A is [K, Rows] at
// rows[0], with `k_major_stride`. Never inlined: the row pointers need all registers that a caller would
// take.
template <class scalar_t, int Rows, int V, bool KMajor>
[[gnu::noinline]] void microkernel(const Product<scalar_t>* products, int count, int64_t panel,
                                   acc_t<scalar_t>* acc, int64_t stride, bool fresh, LineQueue& lines) {
  using G = KGroup<scalar_t>;
  constexpr int Panels = (V + 1) / 2;
  constexpr int64_t bytes =
      k_pack<scalar_t> * V / Panels * lanes<scalar_t> * sizeof(scalar_t);  // of a panel's k-group
  constexpr int pointers = row_pointers(Panels);
  constexpr bool few = has_few_rows(Rows);  // chains are short, and end with a product
  int64_t k_groups = 0;
  for (int n = 0; n < count && !few; ++n) k_groups += products[n].k_end - products[n].k_begin;
  const int64_t chain = chain_length(Rows, k_groups), interval = lines.each > 0 ? lines.interval : chain;
  int64_t chain_left = chain;
  for (int r = 0; r < Rows && !fresh; ++r)
    for (int v = 0; v < V; ++v) __builtin_prefetch(acc + r * stride + v * lanes<scalar_t>, 1, 3);
  Vec<scalar_t> sum[Rows][V] = {};
  for (int n = 0; n < count; ++n) {
    const Product<scalar_t> product = products[n];  // a copy: stores to acc might alias it
    const bool prefetches = !few || product.prefetch_bytes > 0;
    const scalar_t* const* others = product.rows;  // loaded with every k-group
    const scalar_t* row[Rows];
    for (int r = 0; r < Rows; ++r) row[r] = product.rows[KMajor ? 0 : r];
    if (KMajor) row[0] += product.k_begin * product.k_major_stride;
    const scalar_t* weights =
        product.weights + panel * product.panel_stride + product.k_begin * product.k_stride;
    const char* prefetch = product.prefetch + panel * product.prefetch_stride;
    for (int64_t k = product.k_begin; k < product.k_end;) {
      int64_t end = min(product.k_end, k + chain_left);
      if (!few) {
        lines.prefetch();
        end = min(end, k + interval);
        chain_left -= end - k;
      }
      for (; k < end; ++k, weights += product.k_stride, prefetch += product.prefetch_bytes) {
        for (int p = 0; p < Panels && prefetches; ++p) {
          for (int64_t line = 0; line < bytes; line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(weights + p * product.panel_stride +
                                                             prefetch_distance * product.k_stride) +
                               line);
          __builtin_prefetch(prefetch + p * product.prefetch_stride, 0, 2);
        }
#pragma GCC unroll 2
        for (int pass = 0; pass < G::passes; ++pass) {
          // Without this the compiler spills the other rows' pointers to vector registers.
          if (!KMajor && Rows > pointers) asm("" : "+r"(others));
          // Load all weights before any element of A: in the other order the compiler keeps neither in
          // registers.
          typename G::Operand w[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v)
            w[v] = G::weights(
                weights + v / 2 * product.panel_stride + v % 2 * lanes<scalar_t> * k_pack<scalar_t>, pass);
#if defined(LSTM_FUSED_AVX2) || defined(LSTM_FUSED_AVX512)
          // Else the compiler loads them again for each row.
          for (int v = 0; v < V && keeps_weights(Rows, Panels); ++v) asm("" : "+v"(w[v]));
#endif
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r) {
            const typename G::Operand a =
                KMajor ? G::element(row[0], r, pass) : G::element(r < pointers ? row[r] : others[r], k, pass);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = G::multiply_add(w[v], a, sum[r][v]);
          }
        }
        if (KMajor) row[0] += product.k_major_stride;
      }
      if (!few && chain_left > 0 && (k < product.k_end || n + 1 < count)) continue;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          acc_t<scalar_t>* to = acc + r * stride + v * lanes<scalar_t>;
          store(to, fresh ? sum[r][v] : load(to) + sum[r][v]);
          sum[r][v] = Vec<scalar_t>{};
        }
      fresh = false;
      chain_left = chain;
    }
  }
}

// All panels of packed weights (pack.h), or of a matrix [K, N] as it is, with N a multiple of NR.
template <class scalar_t>
struct PackedWeights {
  const scalar_t* data;
  int64_t k_groups;
  int64_t panel_stride;                                // in elements
  int64_t k_stride = k_pack<scalar_t> * NR<scalar_t>;  // in elements

  bool packed() const { return k_stride == k_pack<scalar_t> * NR<scalar_t>; }
  const scalar_t* at(int64_t panel, int64_t k_group) const {
    return data + panel * panel_stride + k_group * k_stride;
  }
};

// The micro-kernel for any number of vectors.
template <class scalar_t, int Rows, bool KMajor>
void multiply_vectors(const Product<scalar_t>* products, int count, int64_t vectors, acc_t<scalar_t>* acc,
                      int64_t stride, bool fresh, LineQueue& lines) {
  constexpr int Panels = panels_for<scalar_t>(Rows);
  int64_t p = 0;
  for (; p + Panels <= vectors / 2; p += Panels)
    microkernel<scalar_t, Rows, 2 * Panels, KMajor>(products, count, p, acc + p * NR<scalar_t>, stride, fresh,
                                                    lines);
  if constexpr (Panels > 1)
    for (; p < vectors / 2; ++p)
      microkernel<scalar_t, Rows, 2, KMajor>(products, count, p, acc + p * NR<scalar_t>, stride, fresh,
                                             lines);
  if (vectors % 2 > 0)
    microkernel<scalar_t, Rows, 1, KMajor>(products, count, p, acc + p * NR<scalar_t>, stride, fresh, lines);
}

// The same for a number of rows, at most MR, that is known at run time only.
template <class scalar_t, bool KMajor, int Rows = MR>
inline void multiply_rows(int64_t rows, const Product<scalar_t>* products, int count, int64_t vectors,
                          acc_t<scalar_t>* acc, int64_t stride, bool fresh, LineQueue& lines) {
  if (rows == Rows)
    return multiply_vectors<scalar_t, Rows, KMajor>(products, count, vectors, acc, stride, fresh, lines);
  if constexpr (Rows > 1)
    multiply_rows<scalar_t, KMajor, Rows - 1>(rows, products, count, vectors, acc, stride, fresh, lines);
}

// Accumulators, for at most max_nc panels, and their place in the output.
template <class scalar_t>
struct AccumulatorTile {
  int64_t first_row, rows;  // at most tile_rows<scalar_t>
  int64_t first_panel, panels;
  int64_t vectors;       // that vectors multiply: one less than in the panels where the last has only one
  acc_t<scalar_t>* acc;  // [rows, panels * NR], `own` or a part of the output
  int64_t stride;        // leading dimension of acc
  alignas(64) acc_t<scalar_t> own[tile_rows<scalar_t> * max_nc * NR<scalar_t>];

  acc_t<scalar_t>* at(int64_t r, int64_t p) { return acc + r * stride + p * NR<scalar_t>; }
};

}  // namespace lstm_fused::LSTM_FUSED_ISA
