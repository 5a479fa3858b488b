// Products of bfloat16 by the processor's matrix unit (AMX), whose intrinsics are here and nowhere else.
#pragma once

#include "simd.h"

#ifdef LSTM_FUSED_AMX

namespace lstm_fused::LSTM_FUSED_ISA {

// Fewer rows the vectors take in the same time: weights, not arithmetic, bind these.
constexpr int64_t least_matrix_rows = 4;

// Rows of factors that lie `apart`, and the sums that their products join.
struct MatrixRows {
  const BFloat16* factors;
  int64_t apart;  // in numbers
  float* sums;
};

// What the matrix registers hold: 0 to 3 the sums of two lots of rows by two vectors, or of one lot by four,
// 4 and 5 the factors of either lot, 6 and 7 the weights of either vector. Given back at the end, for others
// use them too.
class MatrixShape {
 public:
  ~MatrixShape() {
    if (rows_[0]) _tile_release();
  }
  void set(int64_t first, int64_t second) {
    if (rows_[0] == first && rows_[1] == second) return;
    rows_[0] = first, rows_[1] = second;
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {1, 0, {}, {}, {}};
    for (int n = 0; n < 8; ++n) {
      const int64_t rows = n >= 6 ? 16 : rows_[n < 4 ? n / 2 : n - 4];
      shape.rows[n] = static_cast<uint8_t>(rows);
      shape.row_bytes[n] = 64;
    }
    load(&shape);
  }

 private:
  // Never inlined, nor is what follows: the compiler is not told what memory these instructions read.
  [[gnu::noinline]] static void load(const void* shape) { _tile_loadconfig(shape); }

  int64_t rows_[2] = {0, 0};
};

// Adds the product of a panel to the sums of one or two lots of rows, or of two panels that lie `apart` to
// those of one lot, whose sums by the second panel are `second`'s. From one row's sums to the next it is
// `stride` numbers. The inner dimension has `units` units, a whole number of registers.
template <int Lots, int Panels>
[[gnu::noinline]] void multiply_matrices(const MatrixRows& first, const MatrixRows& second, int64_t units,
                                         const BFloat16* weights, int64_t apart, int64_t stride) {
  constexpr int64_t unit_bytes = 2 * lanes<BFloat16> * Unit<BFloat16>::numbers * sizeof(BFloat16);
  const int64_t sum_bytes = stride * static_cast<int64_t>(sizeof(float));
  const int64_t first_bytes = first.apart * static_cast<int64_t>(sizeof(BFloat16));
  const int64_t second_bytes = second.apart * static_cast<int64_t>(sizeof(BFloat16));
  _tile_loadd(0, first.sums, sum_bytes);
  _tile_loadd(1, first.sums + lanes<BFloat16>, sum_bytes);
  if constexpr (Lots * Panels == 2) {
    _tile_loadd(2, second.sums, sum_bytes);
    _tile_loadd(3, second.sums + lanes<BFloat16>, sum_bytes);
  }
  for (int64_t k = 0; k < units; k += matrix_units) {
    const char* w = reinterpret_cast<const char*>(weights) + k * unit_bytes;
    _tile_loadd(6, w, unit_bytes);
    _tile_loadd(4, first.factors + k * Unit<BFloat16>::numbers, first_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + unit_bytes / 2, unit_bytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Lots == 2) {
      _tile_loadd(5, second.factors + k * Unit<BFloat16>::numbers, second_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (Panels == 2) {
      const char* v = w + apart * static_cast<int64_t>(sizeof(BFloat16));
      _tile_loadd(6, v, unit_bytes);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, v + unit_bytes / 2, unit_bytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, first.sums, sum_bytes);
  _tile_stored(1, first.sums + lanes<BFloat16>, sum_bytes);
  if constexpr (Lots * Panels == 2) {
    _tile_stored(2, second.sums, sum_bytes);
    _tile_stored(3, second.sums + lanes<BFloat16>, sum_bytes);
  }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA

#endif
