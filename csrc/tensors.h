// Tensors of PyTorch's stable ABI: reads them, checks operator arguments as far as memory safety needs it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>

#include "lstm/engine.h"
#include "plan/plan.h"

namespace lstm_fused {

using DType = int32_t;  // PyTorch's number of a dtype

// Raises a RuntimeError: PyTorch's stable ABI lets no other class of error pass on every version.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  ((text << "lstm_fused: ") << ... << parts);
  throw std::runtime_error(text.str());
}
#define LSTM_FUSED_CHECK(condition, ...) \
  if (!(condition)) [[unlikely]]         \
  ::lstm_fused::fail(__VA_ARGS__)

using Shape = std::span<const int64_t>;  // borrowed from a tensor
using Sized = std::initializer_list<int64_t>;
std::string written(Shape shape);

struct ReleaseHandle {
  bool owned = true;
  void operator()(AtenTensorHandle handle) const {
    if (owned) aoti_torch_delete_tensor_object(handle);
  }
};

// A tensor's handle: an owned one, or one that is borrowed from a Tensor that lives longer.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle, bool owned = true) : handle_(handle, ReleaseHandle{owned}) {}
  Tensor borrowed() const { return Tensor(handle(), false); }
  AtenTensorHandle handle() const { return handle_.get(); }
  AtenTensorHandle release() { return handle_.release(); }

  DType dtype() const;
  Shape sizes() const;
  const int64_t* strides() const;
  const void* data() const;
  void* mutable_data() const;

 private:
  std::unique_ptr<AtenTensorOpaque, ReleaseHandle> handle_;
};
using MaybeTensor = std::optional<Tensor>;

// A new tensor on the CPU. A large one reuses the memory of one that was freed.
Tensor empty(DType dtype, Sized shape);

// Refuses sizes whose products would overflow; a tensor may be expanded from one element, or have none.
void check_sizes(const Sizes& sizes, DType dtype);

// Refuses a tensor that is not a CPU tensor of this shape and dtype with enough storage. The result is
// contiguous: the tensor itself, borrowed, or a copy.
Tensor checked(const Tensor& tensor, const char* name, Sized shape, DType dtype);
MaybeTensor checked(const MaybeTensor& tensor, const char* name, Sized shape, DType dtype);

// The same for StridedRows: [T, B, N] keeps its strides if rows are contiguous.
Tensor checked_rows(const Tensor& tensor, const char* name, Sized shape, DType dtype);
MaybeTensor checked_rows(const MaybeTensor& tensor, const char* name, Sized shape, DType dtype);

// The same for lengths [B], all in [0, T].
MaybeTensor checked_lengths(const MaybeTensor& lengths, int64_t T, int64_t B);

template <class scalar_t>
DType dtype_of();
template <>
inline DType dtype_of<float>() {
  return aoti_torch_dtype_float32();
}
template <>
inline DType dtype_of<double>() {
  return aoti_torch_dtype_float64();
}
template <>
inline DType dtype_of<BFloat16>() {
  return aoti_torch_dtype_bfloat16();
}
template <>
inline DType dtype_of<int64_t>() {
  return aoti_torch_dtype_int64();
}

const char* name_of(DType dtype);

// Calls the visitor with an element of the type that dtype names.
template <class Visitor>
auto by_dtype(DType dtype, const char* name, Visitor visit) {
  if (dtype == dtype_of<float>()) return visit(float{});
  if (dtype == dtype_of<double>()) return visit(double{});
  if (dtype == dtype_of<BFloat16>()) return visit(BFloat16{});
  fail(name, " must be bfloat16, float32 or float64, got ", name_of(dtype));
}

// The address of a tensor that has no memory, because it has no elements: null would mean that there is no
// tensor.
alignas(64) inline char no_elements[1];

template <class scalar_t>
const scalar_t* data(const Tensor& tensor) {
  const void* found = tensor.data();
  return static_cast<const scalar_t*>(found ? found : no_elements);
}

template <class scalar_t>
const scalar_t* data(const MaybeTensor& tensor) {
  return tensor ? data<scalar_t>(*tensor) : nullptr;
}

template <class scalar_t>
scalar_t* mutable_data(const Tensor& tensor) {
  void* found = tensor.mutable_data();
  return static_cast<scalar_t*>(found ? found : no_elements);
}

template <class scalar_t>
StridedRows<scalar_t> strided_rows(const Tensor& tensor) {
  const int64_t* strides = tensor.strides();
  return {data<scalar_t>(tensor), strides[0], strides[1]};
}

template <class scalar_t>
StridedRows<scalar_t> strided_rows(const MaybeTensor& tensor) {
  return tensor ? strided_rows<scalar_t>(*tensor) : StridedRows<scalar_t>{};
}

}  // namespace lstm_fused
