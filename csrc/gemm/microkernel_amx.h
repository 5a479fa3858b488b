// The AMX micro-kernel, of bfloat16. All AMX intrinsics are in this file.
#pragma once

#include "gemm/layout.h"
#include "isa/simd.h"

#ifdef LSTM_FUSED_AMX

namespace lstm_fused::LSTM_FUSED_ISA {

// Compilers do not know which memory AMX instructions read and write: before them all stores must have been
// made, and after them all loads must still come.
inline void amx_memory_barrier() { asm volatile("" ::: "memory"); }

// Operand rows at equal distances, as tile loads need them.
struct AmxRows {
  const BFloat16* data;
  int64_t stride;  // elements from one row to the next
};

// K-groups [k, k + k_groups) of `count` rows. Where lengths have left gaps between the rows, copies them.
inline AmxRows amx_rows(const BFloat16* const* rows, int64_t count, int64_t k, int64_t k_groups,
                        BFloat16* copy) {
  const auto at = [&](int64_t r) { return rows[r] + 2 * k; };
  const int64_t stride = count > 1 ? at(1) - at(0) : 0, elements = 2 * k_groups;
  bool equidistant = true;
  for (int64_t r = 2; r < count; ++r) equidistant = equidistant && at(r) - at(r - 1) == stride;
  if (equidistant) return {at(0), stride};
  for (int64_t r = 0; r < count; ++r)
    __builtin_memcpy(copy + r * elements, at(r), static_cast<size_t>(elements) * sizeof(BFloat16));
  return {copy, elements};
}

// One product of a sum: A, of one or two row blocks, times B, panels that are `panel_stride` apart.
struct AmxProduct {
  AmxRows rows[2];
  int64_t k_groups;  // in whole AMX tiles
  const BFloat16* weights;
  int64_t panel_stride;
};

// Configures the eight tile registers and releases them at the end of the scope. Registers 0 to 3 accumulate
// two row blocks × two vectors, or one row block × four vectors. 4 and 5 hold the row blocks of A, 6 and 7
// the two vectors of B.
class AmxTileConfig {
 public:
  ~AmxTileConfig() {
    if (rows_[0]) _tile_release();
  }
  // Rows of registers 0, 1 and 4, and of 2, 3 and 5.
  void set(int64_t first, int64_t second) {
    if (rows_[0] == first && rows_[1] == second) return;
    rows_[0] = first, rows_[1] = second;
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {1, 0, {}, {}, {}};
    for (int n = 0; n < 8; ++n) {
      const int64_t rows = n > 5 ? amx_tile_k_groups : rows_[n < 4 ? n / 2 : n - 4];
      config.rows[n] = static_cast<uint8_t>(rows);
      config.row_bytes[n] = 64;
    }
    amx_memory_barrier();
    _tile_loadconfig(&config);
  }

 private:
  int64_t rows_[2] = {0, 0};
};

// Adds the sum of products to accumulators with leading dimension `stride`, or stores it if they are `fresh`:
// of two row blocks by a panel, or of one row block by two panels, at acc0 and acc1.
template <int RowBlocks, int Panels>
[[gnu::noinline]] void microkernel_amx(const AmxProduct* products, int count, float* acc0, float* acc1,
                                       int64_t stride, bool fresh) {
  constexpr int64_t group = 2 * 2 * lanes<BFloat16>, group_bytes = group * sizeof(BFloat16);
  constexpr int64_t vector_bytes = group_bytes / 2;
  const int64_t acc_bytes = stride * static_cast<int64_t>(sizeof(float));
  amx_memory_barrier();
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, acc0, acc_bytes);
    _tile_loadd(1, acc0 + lanes<float>, acc_bytes);
    if constexpr (RowBlocks * Panels == 2) {
      _tile_loadd(2, acc1, acc_bytes);
      _tile_loadd(3, acc1 + lanes<float>, acc_bytes);
    }
  }
  for (const AmxProduct* product = products; product < products + count; ++product) {
    const auto [row0, row1] = product->rows;
    const int64_t a0_bytes = row0.stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t a1_bytes = row1.stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t panel_bytes = product->panel_stride * static_cast<int64_t>(sizeof(BFloat16));
    for (int64_t k = 0; k < product->k_groups; k += amx_tile_k_groups) {
      const BFloat16 *a0 = row0.data + 2 * k, *a1 = row1.data + 2 * k;
      const char* b0 = reinterpret_cast<const char*>(product->weights + k * group);
      const char* b1 = b0 + panel_bytes;
      _tile_loadd(6, b0, group_bytes);
      _tile_loadd(4, a0, a0_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b0 + vector_bytes, group_bytes);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (RowBlocks == 2) {
        _tile_loadd(5, a1, a1_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      if constexpr (Panels == 2) {
        _tile_loadd(6, b1, group_bytes);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, b1 + vector_bytes, group_bytes);
        _tile_dpbf16ps(3, 4, 7);
      }
    }
  }
  _tile_stored(0, acc0, acc_bytes);
  _tile_stored(1, acc0 + lanes<float>, acc_bytes);
  if constexpr (RowBlocks * Panels == 2) {
    _tile_stored(2, acc1, acc_bytes);
    _tile_stored(3, acc1 + lanes<float>, acc_bytes);
  }
  amx_memory_barrier();
}

}  // namespace lstm_fused::LSTM_FUSED_ISA

#endif
