// Products of bfloat16, and of floats in parts, by the processor's matrix unit (AMX), whose intrinsics are
// here and nowhere else.
#pragma once

#include "gemm/bf16x3.h"

#ifdef LSTM_FUSED_AMX

namespace lstm_fused::LSTM_FUSED_ISA {

// Fewer rows the vectors take in the same time: weights, not arithmetic, bind these.
constexpr int64_t least_matrix_rows = 4;

// Rows of factors that lie `apart`, and the sums that their products join.
struct MatrixRows {
  const BFloat16* factors;
  int64_t apart;       // in numbers
  int64_t part_apart;  // from one part of a float to the next
  float* sums;
};

// Units [k, k + some) of a lot of rows, which the matrix unit finds at equal distances: where lengths have
// left gaps, in a copy.
template <int Parts, class Number>
MatrixRows lot(const Number* const* rows, int64_t count, int64_t k, int64_t some, int64_t part_apart,
               BFloat16* copy) {
  const auto at = [&](int64_t r) { return reinterpret_cast<const BFloat16*>(rows[r]) + 2 * k; };
  const int64_t apart = count > 1 ? at(1) - at(0) : 0, numbers = 2 * some;
  bool equal = true;
  for (int64_t r = 2; r < count; ++r) equal = equal && at(r) - at(r - 1) == apart;
  if (equal) return {at(0), apart, part_apart, nullptr};
  for (int64_t part = 0; part < Parts; ++part)
    for (int64_t r = 0; r < count; ++r)
      __builtin_memcpy(copy + (part * count + r) * numbers, at(r) + part * part_apart,
                       static_cast<size_t>(numbers) * sizeof(BFloat16));
  return {copy, numbers, count * numbers, nullptr};
}

// What the matrix registers hold: 0 to 3 the sums of two lots of rows by two vectors, or of one lot by four,
// 4 and 5 the factors of either lot, 6 and 7 the weights of either vector; of one lot of floats in parts 4 to
// 6 the parts of the factors. Given back at the end, for others use them too.
class MatrixShape {
 public:
  ~MatrixShape() {
    if (rows_[0]) _tile_release();
  }
  // How many rows registers 0, 1 and 4 have, 2, 3 and 5, and 6.
  void set(int64_t first, int64_t second, int64_t third) {
    if (rows_[0] == first && rows_[1] == second && rows_[2] == third) return;
    rows_[0] = first, rows_[1] = second, rows_[2] = third;
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {1, 0, {}, {}, {}};
    for (int n = 0; n < 8; ++n) {
      const int64_t rows = n == 7 ? 16 : rows_[n < 4 ? n / 2 : n - 4];
      shape.rows[n] = static_cast<uint8_t>(rows);
      shape.row_bytes[n] = 64;
    }
    load(&shape);
  }

 private:
  // Never inlined, nor is what follows: the compiler is not told what memory these instructions read.
  [[gnu::noinline]] static void load(const void* shape) { _tile_loadconfig(shape); }

  int64_t rows_[3] = {0, 0, 0};
};

// Adds the product of a panel to the sums of one or two lots of rows, or of two panels that lie `apart` to
// those of one lot, whose sums by the second panel are `second`'s. From one row's sums to the next it is
// `stride` numbers. The inner dimension has `units` units, a whole number of registers.
//
// Of floats in parts it is six of the nine products of parts, which reach into a float's 24 bits, added in
// one order whatever the shape. What is left out is 2^-21 of the whole at the most. G. Henry, P. T. P. Tang
// and A. Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations, ARITH 2019.
template <int Parts, int Lots, int Panels>
[[gnu::noinline]] void multiply_matrices(const MatrixRows& first, const MatrixRows& second, int64_t units,
                                         const BFloat16* weights, int64_t apart, int64_t stride) {
  constexpr int64_t unit = 2 * 2 * lanes<BFloat16>, unit_bytes = unit * sizeof(BFloat16);
  constexpr int64_t part_bytes = matrix_units * unit_bytes, vector_bytes = unit_bytes / 2;
  const int64_t sum_bytes = stride * static_cast<int64_t>(sizeof(float));
  const int64_t first_bytes = first.apart * static_cast<int64_t>(sizeof(BFloat16));
  const int64_t second_bytes = second.apart * static_cast<int64_t>(sizeof(BFloat16));
  _tile_loadd(0, first.sums, sum_bytes);
  _tile_loadd(1, first.sums + lanes<float>, sum_bytes);
  if constexpr (Lots * Panels == 2) {
    _tile_loadd(2, second.sums, sum_bytes);
    _tile_loadd(3, second.sums + lanes<float>, sum_bytes);
  }
  for (int64_t k = 0; k < units; k += matrix_units) {
    const BFloat16 *x = first.factors + 2 * k, *z = second.factors + 2 * k;
    const char* w = reinterpret_cast<const char*>(weights + k * Parts * unit);
    const char* v = w + apart * static_cast<int64_t>(sizeof(BFloat16));
    if constexpr (Parts == 1) {
      _tile_loadd(6, w, unit_bytes);
      _tile_loadd(4, x, first_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + vector_bytes, unit_bytes);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (Lots == 2) {
        _tile_loadd(5, z, second_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      if constexpr (Panels == 2) {
        _tile_loadd(6, v, unit_bytes);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, v + vector_bytes, unit_bytes);
        _tile_dpbf16ps(3, 4, 7);
      }
    } else if constexpr (Lots == 2) {
      const auto weights_of = [&](int64_t part) {
        _tile_loadd(6, w + part * part_bytes, unit_bytes);
        _tile_loadd(7, w + part * part_bytes + vector_bytes, unit_bytes);
      };
      const auto factors_of = [&](int64_t part) {
        _tile_loadd(4, x + part * first.part_apart, first_bytes);
        _tile_loadd(5, z + part * second.part_apart, second_bytes);
      };
      const auto add_products = [] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      };
      weights_of(2), factors_of(0), add_products();
      weights_of(1), add_products();
      factors_of(1), add_products();
      weights_of(0), add_products();
      factors_of(2), add_products();
      factors_of(0), add_products();
    } else {
      _tile_loadd(4, x, first_bytes);
      _tile_loadd(5, x + first.part_apart, first_bytes);
      _tile_loadd(6, x + 2 * first.part_apart, first_bytes);
#define LSTM_FUSED_THIRD_PART(sums, from)              \
  _tile_loadd(7, (from) + 2 * part_bytes, unit_bytes); \
  _tile_dpbf16ps(sums, 4, 7);
#define LSTM_FUSED_SECOND_PART(sums, from)         \
  _tile_loadd(7, (from) + part_bytes, unit_bytes); \
  _tile_dpbf16ps(sums, 4, 7);                      \
  _tile_dpbf16ps(sums, 5, 7);
#define LSTM_FUSED_FIRST_PART(sums, from) \
  _tile_loadd(7, from, unit_bytes);       \
  _tile_dpbf16ps(sums, 5, 7);             \
  _tile_dpbf16ps(sums, 6, 7);             \
  _tile_dpbf16ps(sums, 4, 7);
#define LSTM_FUSED_EACH_VECTOR(part)     \
  part(0, w) part(1, w + vector_bytes);  \
  if constexpr (Panels == 2) {           \
    part(2, v) part(3, v + vector_bytes) \
  }
      LSTM_FUSED_EACH_VECTOR(LSTM_FUSED_THIRD_PART)
      LSTM_FUSED_EACH_VECTOR(LSTM_FUSED_SECOND_PART)
      LSTM_FUSED_EACH_VECTOR(LSTM_FUSED_FIRST_PART)
#undef LSTM_FUSED_THIRD_PART
#undef LSTM_FUSED_SECOND_PART
#undef LSTM_FUSED_FIRST_PART
#undef LSTM_FUSED_EACH_VECTOR
    }
  }
  _tile_stored(0, first.sums, sum_bytes);
  _tile_stored(1, first.sums + lanes<float>, sum_bytes);
  if constexpr (Lots * Panels == 2) {
    _tile_stored(2, second.sums, sum_bytes);
    _tile_stored(3, second.sums + lanes<float>, sum_bytes);
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA

#endif
