// The checks of tensors.h.
#include "tensors.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>

namespace lstm_fused {
namespace {

void check(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), "lstm_fused: ", name, " must be on the CPU, got ",
                    tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, "lstm_fused: ", name, " must be ", dtype, ", got ",
                    tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "lstm_fused: ", name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  const size_t needed = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize(),
                                                         tensor.storage_offset());
  TORCH_CHECK_VALUE(needed <= tensor.storage().nbytes(), "lstm_fused: ", name, " must have a storage of ",
                    needed, " bytes, got ", tensor.storage().nbytes());
}

}  // namespace

void check_sizes(const Sizes& sizes, at::ScalarType dtype) {
  const auto& [T, B, I, H, P, weight_ih, gain_hh] = sizes;
  const auto padded = [](int64_t n) { return static_cast<double>(n) + 128; };  // at most, in workspaces
  const double rows = static_cast<double>(std::max<int64_t>(T, 2)) * static_cast<double>(B);
  const double gates = 4 * padded(H), inner = padded(I) + padded(P);
  const double elements = rows * (gates + inner) + gates * inner;
  TORCH_CHECK(elements < 0x1p59,
              "lstm_fused: DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
              elements * static_cast<double>(c10::elementSize(dtype)), " bytes, for T = ", T, ", B = ", B,
              ", I = ", I, ", H = ", H, " and P = ", P);
}

Tensor checked(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  check(tensor, name, shape, dtype);
  return tensor.contiguous();
}

MaybeTensor checked(const MaybeTensor& tensor, const char* name, at::IntArrayRef shape,
                    at::ScalarType dtype) {
  return tensor ? MaybeTensor(checked(*tensor, name, shape, dtype)) : std::nullopt;
}

Tensor checked_rows(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  check(tensor, name, shape, dtype);
  return tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

MaybeTensor checked_rows(const MaybeTensor& tensor, const char* name, at::IntArrayRef shape,
                         at::ScalarType dtype) {
  return tensor ? MaybeTensor(checked_rows(*tensor, name, shape, dtype)) : std::nullopt;
}

MaybeTensor checked_lengths(const MaybeTensor& lengths, int64_t T, int64_t B) {
  MaybeTensor result = checked(lengths, "lengths", {B}, at::kLong);
  if (result) {
    const int64_t* length = result->const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b)
      TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= T, "lstm_fused: lengths[", b, "] must be in [0, ", T,
                        "], got ", length[b]);
  }
  return result;
}

}  // namespace lstm_fused
