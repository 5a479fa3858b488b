// Reads, makes and checks tensors through PyTorch's C interface.
#include "tensors.h"

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <array>
#include <string>

#include "runtime/memory.h"

namespace lstm_fused {
namespace {

namespace stable = torch::stable::detail;

bool is_contiguous(Shape shape, const int64_t* strides) {
  int64_t expected = 1;
  for (size_t n = shape.size(); n-- > 0; expected *= shape[n]) {
    if (shape[n] == 0) return true;
    if (shape[n] != 1 && strides[n] != expected) return false;
  }
  return true;
}

Tensor contiguous(const Tensor& tensor) {
  AtenTensorHandle argument;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.handle(), &argument));
  std::array<StableIValue, 2> stack{stable::from(argument),
                                    stable::from(torch::headeronly::MemoryFormat::Contiguous)};
  // A tensor that was checked cannot be copied only if there is no memory.
  if (torch_call_dispatcher("aten::contiguous", "", stack.data(), TORCH_ABI_VERSION)) {
    double bytes = static_cast<double>(aoti_torch_dtype_element_size(tensor.dtype()));
    for (const int64_t size : tensor.sizes()) bytes *= static_cast<double>(size);
    fail("DefaultCPUAllocator: can't allocate memory: you tried to allocate ", static_cast<int64_t>(bytes),
         " bytes.");
  }
  return Tensor(stable::to<AtenTensorHandle>(stack[0]));
}

// Bytes of storage that a tensor needs; its sizes and strides are PyTorch's own, none negative.
int64_t needed_bytes(const Tensor& tensor, Shape shape, const int64_t* strides, DType dtype) {
  int64_t last;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor.handle(), &last));
  for (size_t n = 0; n < shape.size(); ++n) {
    if (shape[n] == 0) return 0;
    last += (shape[n] - 1) * strides[n];
  }
  return (last + 1) * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
}

// Returns the strides.
const int64_t* check(const Tensor& tensor, const char* name, Sized shape, DType dtype) {
  int32_t device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.handle(), &device));
  LSTM_FUSED_CHECK(device == aoti_torch_device_type_cpu(), name, " must be on the CPU");
  const DType found = tensor.dtype();
  LSTM_FUSED_CHECK(found == dtype, name, " must be ", name_of(dtype), ", got ", name_of(found));
  const Shape sizes = tensor.sizes();
  LSTM_FUSED_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), name,
                   " must have shape ", written({shape.begin(), shape.size()}), ", got ", written(sizes));
  const int64_t* strides = tensor.strides();
  const int64_t needed = needed_bytes(tensor, sizes, strides, dtype);
  int64_t stored;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.handle(), &stored));
  LSTM_FUSED_CHECK(needed <= stored, name, " must have a storage of ", needed, " bytes, got ", stored);
  return strides;
}

// In from_blob's interface.
void give_back(void* data, void* bytes) { give_block({data, reinterpret_cast<size_t>(bytes)}); }

}  // namespace

std::string written(Shape shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

const char* name_of(DType dtype) {
  using torch::headeronly::ScalarType;
  return torch::headeronly::toString(stable::to<ScalarType>(stable::from(dtype)));
}

DType Tensor::dtype() const {
  DType result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle(), &result));
  return result;
}

Shape Tensor::sizes() const {
  int64_t* sizes;
  int64_t dim;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle(), &dim));
  return {sizes, static_cast<size_t>(dim)};
}

const int64_t* Tensor::strides() const {
  int64_t* strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle(), &strides));
  return strides;
}

const void* Tensor::data() const {
  const void* result;
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(handle(), &result));
  return result;
}

void* Tensor::mutable_data() const {
  void* result;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handle(), &result));
  return result;
}

Tensor empty(DType dtype, Sized shape) {
  std::array<int64_t, 3> strides;  // [T, B, N] at most
  int64_t elements = 1;
  auto stride = strides.begin() + shape.size();
  for (auto size = shape.end(); size != shape.begin(); elements *= std::max<int64_t>(*size, 1)) {
    --size;
    *--stride = elements;
  }
  const bool has_elements = std::find(shape.begin(), shape.end(), 0) == shape.end();
  const size_t bytes =
      has_elements ? static_cast<size_t>(elements) * aoti_torch_dtype_element_size(dtype) : 0;
  const int64_t dim = static_cast<int64_t>(shape.size());
  const int32_t cpu = aoti_torch_device_type_cpu();
  AtenTensorHandle made;
  if (bytes < pool_min_bytes) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dim, shape.begin(), strides.data(), dtype, cpu, 0, &made));
    Tensor result(made);
    fill_if_asked(result.mutable_data(), bytes);
    return result;
  }
  const Block block = take_block(bytes);
  const AOTITorchError error = torch_from_blob(block.data, dim, shape.begin(), strides.data(), 0, dtype, cpu,
                                               -1, &made, aoti_torch_layout_strided(), nullptr, 0, give_back,
                                               reinterpret_cast<void*>(block.bytes));
  if (error) give_block(block);
  TORCH_ERROR_CODE_CHECK(error);
  return Tensor(made);
}

void check_sizes(const Sizes& sizes, DType dtype) {
  const auto& [T, B, I, H, P, weight_ih] = sizes;
  const auto padded = [](int64_t n) { return static_cast<double>(n) + 128; };  // at most, in workspaces
  const double rows = static_cast<double>(std::max<int64_t>(T, 2)) * static_cast<double>(B);
  const double gates = 4 * padded(H), inner = padded(I) + padded(P);
  const double elements = rows * (gates + inner) + gates * inner;
  LSTM_FUSED_CHECK(elements < 0x1p59, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
                   elements * static_cast<double>(aoti_torch_dtype_element_size(dtype)),
                   " bytes, for T = ", T, ", B = ", B, ", I = ", I, ", H = ", H, " and P = ", P);
}

Tensor checked(const Tensor& tensor, const char* name, Sized shape, DType dtype) {
  const int64_t* strides = check(tensor, name, shape, dtype);
  return is_contiguous({shape.begin(), shape.size()}, strides) ? tensor.borrowed() : contiguous(tensor);
}

MaybeTensor checked(const MaybeTensor& tensor, const char* name, Sized shape, DType dtype) {
  return tensor ? MaybeTensor(checked(*tensor, name, shape, dtype)) : std::nullopt;
}

Tensor checked_rows(const Tensor& tensor, const char* name, Sized shape, DType dtype) {
  const int64_t* strides = check(tensor, name, shape, dtype);
  return strides[2] == 1 ? tensor.borrowed() : contiguous(tensor);
}

MaybeTensor checked_rows(const MaybeTensor& tensor, const char* name, Sized shape, DType dtype) {
  return tensor ? MaybeTensor(checked_rows(*tensor, name, shape, dtype)) : std::nullopt;
}

MaybeTensor checked_lengths(const MaybeTensor& lengths, int64_t T, int64_t B) {
  MaybeTensor result = checked(lengths, "lengths", {B}, dtype_of<int64_t>());
  if (result) {
    const int64_t* length = data<int64_t>(*result);
    for (int64_t b = 0; b < B; ++b)
      LSTM_FUSED_CHECK(length[b] >= 0 && length[b] <= T, "lengths[", b, "] must be in [0, ", T, "], got ",
                       length[b]);
  }
  return result;
}

}  // namespace lstm_fused
