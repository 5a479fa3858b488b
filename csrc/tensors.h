// Checks operator arguments as far as memory safety needs it, and gives access to their data.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "lstm/engine.h"
#include "plan/plan.h"

namespace lstm_fused {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Refuses sizes whose products would overflow; a tensor may be expanded from one element, or have none.
void check_sizes(const Sizes& sizes, at::ScalarType dtype);

// Refuses a tensor that is not a CPU tensor of this shape and dtype with enough storage; makes it contiguous.
Tensor checked(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype);
MaybeTensor checked(const MaybeTensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype);

// The same for StridedRows: [T, B, N] keeps its strides if rows are contiguous.
Tensor checked_rows(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype);
MaybeTensor checked_rows(const MaybeTensor& tensor, const char* name, at::IntArrayRef shape,
                         at::ScalarType dtype);

// The same for lengths [B], all in [0, T].
MaybeTensor checked_lengths(const MaybeTensor& lengths, int64_t T, int64_t B);

template <class scalar_t>
constexpr at::ScalarType dtype_of = at::kFloat;
template <>
inline constexpr at::ScalarType dtype_of<double> = at::kDouble;
template <>
inline constexpr at::ScalarType dtype_of<BFloat16> = at::kBFloat16;

// Calls the visitor with an element of the type that dtype names.
template <class Visitor>
auto by_dtype(at::ScalarType dtype, const char* name, Visitor visit) {
  switch (dtype) {
    case at::kFloat:
      return visit(float{});
    case at::kDouble:
      return visit(double{});
    case at::kBFloat16:
      return visit(BFloat16{});
    default:
      TORCH_CHECK_TYPE(false, "lstm_fused: ", name, " must be bfloat16, float32 or float64, got ", dtype);
  }
}

// The address of a tensor without elements, which has no memory: null would mean that there is no tensor.
alignas(64) inline char no_elements[1];

template <class scalar_t>
const scalar_t* data(const Tensor& tensor) {
  return static_cast<const scalar_t*>(tensor.numel() ? tensor.const_data_ptr() : no_elements);
}

template <class scalar_t>
const scalar_t* data(const MaybeTensor& tensor) {
  return tensor ? data<scalar_t>(*tensor) : nullptr;
}

template <class scalar_t>
scalar_t* mutable_data(const Tensor& tensor) {
  return static_cast<scalar_t*>(tensor.numel() ? tensor.mutable_data_ptr() : no_elements);
}

template <class scalar_t>
StridedRows<scalar_t> strided_rows(const MaybeTensor& tensor) {
  if (!tensor) return {};
  return {data<scalar_t>(*tensor), tensor->stride(0), tensor->stride(1)};
}

}  // namespace lstm_fused
