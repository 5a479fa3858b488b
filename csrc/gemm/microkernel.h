// The product of a few rows with packed weights, in registers.
#pragma once

#include "isa/simd.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Accumulators that leave registers for the weights of a panel and a broadcast factor.
constexpr int accumulators = LSTM_FUSED_REGISTERS - 4;
// A panel is two vectors wide: the tallest tile has one panel, so that each weight loaded serves most rows.
constexpr int vector_rows = accumulators / 2;
constexpr int gate_panels = 2;  // i, f and g, o of one vector of channels
constexpr int most_panels = 4;

// Panels side by side for a tile of this many rows: lower tiles are wider, to keep as many products in
// flight.
constexpr int panels_of(int rows) {
  return rows * 8 <= accumulators ? most_panels : rows * 4 <= accumulators ? 2 : 1;
}

template <class Number>
constexpr int panel = 2 * lanes<Number>;

// Rows of the tallest tile: as many as the matrix unit takes where there is one.
template <class Number>
constexpr int64_t tallest(bool in_parts) {
  return has_matrix_unit && (in_parts || Unit<Number>::numbers == 2) ? matrix_units : vector_rows;
}
template <class Number>
constexpr int most_rows = static_cast<int>(tallest<Number>(std::is_same_v<Number, float>));

// Units of the inner dimension whose weights are passed over by all tiles before the next: the panels of a
// column stay in the second cache, at most 512 KB.
constexpr int64_t block = 1024;

// The same for floats in parts, whose units are pairs: the rows' parts stay in the first cache while all
// panels of a tile pass over them, but sums of at least so many products had better not be put away that
// often.
constexpr int64_t short_block = 32, long_block = 512, long_sum = 1024;

// Weights meet so few rows that reading them takes longer than multiplying.
constexpr bool memory_binds(int64_t rows) { return rows <= 3; }

// Products added up before they join the sum, for long chains of additions lose accuracy. Libraries take a
// few rows as matrix by vector products with many short chains, and so do we.
constexpr int64_t chain_of(int rows) { return memory_binds(rows) ? 16 : 128; }

// Weights that stay in the second cache from step to step; where memory binds, fetching them there once more
// takes a third of the time that reading them does.
constexpr int64_t kept_bytes = 1 << 20;

// How many units ahead weights are fetched: the processor's own prefetching stops at the end of every page.
constexpr int ahead = 16;

// Adds rows, units [first, last), times weights, P panels [K, panel] that lie `apart`, to R sums that lie
// `stride`. Meanwhile fetches `fetch_bytes` for each unit and panel from `fetch`, into the second cache; none
// for a few rows tells that their weights are there, where the processor's own prefetching does best alone.
// Never inlined: the rows' addresses need every register that a caller's own would take.
template <class Number, int R, int P>
[[gnu::noinline]] void multiply(const Number* const* rows, int64_t first, int64_t last, const Number* weights,
                                int64_t apart, Real<Number>* sums, int64_t stride, const char* fetch,
                                int64_t fetch_bytes) {
  using U = Unit<Number>;
  constexpr int V = 2 * P;
  constexpr int64_t unit = U::numbers * panel<Number>;  // from one unit's weights to the next
  const bool fetches = !memory_binds(R) || fetch_bytes > 0;
  const Number* row[R];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  weights += first * unit;
  for (int64_t k = first; k < last;) {
    const int64_t end = min(last, k + chain_of(R));
    Vec<Real<Number>> sum[R][V] = {};
    for (; k < end; ++k, weights += unit, fetch += fetch_bytes) {
      for (int p = 0; p < P && fetches; ++p) {
        constexpr int64_t bytes = unit * sizeof(Number);
        for (int64_t line = 0; line < bytes; line += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(weights + p * apart + ahead * unit) + line);
        __builtin_prefetch(fetch + p * apart * static_cast<int64_t>(sizeof(Number)), 0, 2);
      }
#pragma GCC unroll 2
      for (int pass = 0; pass < U::passes; ++pass) {
        // All weights of k before any factor: with factors outermost, each takes a register only in passing.
        typename U::Weights w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
          w[v] = U::weights(weights + v / 2 * apart + v % 2 * lanes<Number> * U::numbers, pass);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const typename U::Weights factor = U::factor(row[r], k, pass);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[r][v] = U::multiply_add(w[v], factor, sum[r][v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        Real<Number>* to = sums + r * stride + v * lanes<Number>;
        store(to, load(to) + sum[r][v]);
      }
  }
}

// Packed weights of an inner dimension of K units, all panels.
template <class Number>
struct Packed {
  const Number* data;
  int64_t K;
  int64_t apart;  // numbers from one panel to the next
  bool in_parts;

  const Number* at(int64_t p, int64_t k) const {
    return data + p * apart + k * Unit<Number>::numbers * panel<Number>;
  }
};

// What a tile fetches for whoever comes next: its share of `units` units from unit k of panel p on.
struct Next {
  int64_t p, k, units, share, shares;
};

// Units [first, last) of panels [p0, p0 + panels), any number of them.
template <class Number, int R>
void multiply_rows(const Number* const* rows, int64_t first, int64_t last, const Packed<Number>& weights,
                   int64_t p0, int64_t panels, Real<Number>* sums, const Next& next) {
  constexpr int P = panels_of(R);
  constexpr int64_t unit_bytes = Unit<Number>::numbers * panel<Number> * sizeof(Number);
  const int64_t apart = weights.apart, stride = panels * panel<Number>;
  const int64_t fetch_bytes = unit_bytes * next.units / ((last - first) * next.shares);
  const auto fetch = [&](int64_t p) {
    return reinterpret_cast<const char*>(weights.at(next.p + p, next.k)) +
           (last - first) * next.share * fetch_bytes;
  };
  int64_t p = 0;
  for (; p + P <= panels; p += P)
    multiply<Number, R, P>(rows, first, last, weights.at(p0 + p, 0), apart, sums + p * panel<Number>, stride,
                           fetch(p), fetch_bytes);
  if constexpr (P > 1)
    for (; p < panels; ++p)
      multiply<Number, R, 1>(rows, first, last, weights.at(p0 + p, 0), apart, sums + p * panel<Number>,
                             stride, fetch(p), fetch_bytes);
}

template <class Number, int R = vector_rows>
inline void multiply_up_to(int64_t count, const Number* const* rows, int64_t first, int64_t last,
                           const Packed<Number>& weights, int64_t p0, int64_t panels, Real<Number>* sums,
                           const Next& next) {
  if (count == R) return multiply_rows<Number, R>(rows, first, last, weights, p0, panels, sums, next);
  if constexpr (R > 1)
    multiply_up_to<Number, R - 1>(count, rows, first, last, weights, p0, panels, sums, next);
}

// A register tile's sums and what they are the sums of.
template <class Number>
struct Tile {
  int64_t row, rows;       // first and how many, at most most_rows<Number>
  int64_t panel0, panels;  // first and how many
  alignas(64) Real<Number> sums[most_rows<Number> * most_panels * panel<Number>];  // [rows, panels * panel]

  Real<Number>* at(int64_t r, int64_t p) { return sums + (r * panels + p) * panel<Number>; }
};

}  // namespace lstm_fused::LSTM_FUSED_ISA
