// What calls of every pass need: the machine, operand buffers, the optional features' arguments.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <optional>

#include "dispatch.h"
#include "plan/plan.h"
#include "runtime/memory.h"
#include "tensors.h"

#ifdef __linux__
// Null where no OpenMP is loaded. <omp.h> is there only with a compiler's OpenMP turned on.
extern "C" __attribute__((weak)) int omp_in_parallel();
#endif

namespace lstm_fused {

inline bool in_parallel_region() {
#ifdef __linux__
  return omp_in_parallel && omp_in_parallel();
#else
  return false;
#endif
}

inline int get_num_threads() {
  uint32_t threads;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

inline Machine this_machine() {
  return {engine().isa, l2_bytes(), in_parallel_region() ? 1 : get_num_threads()};
}

template <class scalar_t>
Packing<scalar_t> packing_of(const Isa& isa) {
  return {isa.vector_bytes / static_cast<int64_t>(sizeof(acc_t<scalar_t>))};
}

// With memory for so many slots.
template <class scalar_t>
OperandBuffer<scalar_t> operand_buffer(Workspace& space, int64_t B, int64_t K, int64_t slots = 2) {
  OperandBuffer<scalar_t> result{nullptr, B, K, slots};
  result.data = space.take<scalar_t>(result.size());
  result.slots = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(slots)));
  return result;
}

// Without rows or channels there are no steps to run, however large T is.
inline Sequence sequence_of(const Sizes& sizes, bool reverse, const MaybeTensor& lengths) {
  const bool empty = sizes.B == 0 || sizes.H + sizes.P == 0;
  return {empty ? 0 : sizes.T, sizes.B, reverse, data<int64_t>(lengths)};
}

// The optional features' arguments, checked.
struct VariantArgs {
  MaybeTensor gain_hh, h_mask, zoneout_h, zoneout_c;
  std::optional<double> cell_clip;

  VariantArgs(const MaybeTensor& gain_hh, const MaybeTensor& h_mask, const MaybeTensor& zoneout_h,
              const MaybeTensor& zoneout_c, std::optional<double> cell_clip, const Sizes& sizes, DType dtype)
      : gain_hh(checked(gain_hh, "gain_hh", {4 * sizes.H}, dtype)),
        h_mask(checked(h_mask, "h_mask", {sizes.B, sizes.P}, dtype)),
        zoneout_h(checked_rows(zoneout_h, "zoneout_h", {sizes.T, sizes.B, sizes.P}, dtype)),
        zoneout_c(checked_rows(zoneout_c, "zoneout_c", {sizes.T, sizes.B, sizes.H}, dtype)),
        cell_clip(cell_clip) {}

  template <class scalar_t>
  Variant<scalar_t> as() const {
    constexpr auto infinite = std::numeric_limits<acc_t<scalar_t>>::infinity();
    return {gain_hh || h_mask || zoneout_h || zoneout_c || cell_clip,
            data<scalar_t>(gain_hh),
            data<scalar_t>(h_mask),
            strided_rows<scalar_t>(zoneout_h),
            strided_rows<scalar_t>(zoneout_c),
            cell_clip ? static_cast<acc_t<scalar_t>>(*cell_clip) : infinite};
  }
};

}  // namespace lstm_fused
