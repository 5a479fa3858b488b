// PyTorch's C interface as far as csrc/ uses it, without PyTorch.
//
// csrc/ is compiled as it is, with PyTorch's headers, and linked with this file in place of libtorch. So it
// runs on a processor for which there is an emulator, but no PyTorch.
#include "shim.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdlib>
#include <cstring>
#include <sstream>

namespace {

PlainTensor& tensor_at(AtenTensorHandle handle) { return *reinterpret_cast<PlainTensor*>(handle); }

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t n = sizes.size(); n-- > 1;) strides[n - 1] = strides[n] * std::max<int64_t>(sizes[n], 1);
  return strides;
}

PlainTensor empty(int32_t dtype, const std::vector<int64_t>& sizes) {
  PlainTensor result{{}, dtype, sizes, contiguous_strides(sizes)};
  result.storage = allocate(result.numel() * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype)));
  return result;
}

PlainTensor contiguous(const PlainTensor& tensor) {
  PlainTensor result = empty(tensor.dtype, tensor.sizes);
  const size_t bytes = aoti_torch_dtype_element_size(tensor.dtype);
  for (int64_t n = 0; n < tensor.numel(); ++n) {
    int64_t at = 0, left = n;
    for (size_t d = tensor.sizes.size(); d-- > 0; left /= tensor.sizes[d])
      at += left % tensor.sizes[d] * tensor.strides[d];
    std::memcpy(result.data() + static_cast<size_t>(n) * bytes,
                tensor.data() + at * static_cast<int64_t>(bytes), bytes);
  }
  return result;
}

}  // namespace

char* PlainTensor::data() const {
  return static_cast<char*>(storage.memory.get()) +
         offset * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
}

int64_t PlainTensor::numel() const {
  int64_t result = 1;
  for (const int64_t size : sizes) result *= size;
  return result;
}

AtenTensorHandle handle_of(PlainTensor tensor) {
  return reinterpret_cast<AtenTensorHandle>(new PlainTensor(std::move(tensor)));
}
const PlainTensor& tensor_of(AtenTensorHandle handle) { return tensor_at(handle); }

Storage allocate(int64_t bytes) {
  const size_t padded = (static_cast<size_t>(bytes) + 63) / 64 * 64 + 64;
  void* memory = std::aligned_alloc(64, padded);
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0xff, padded);
  return {std::shared_ptr<void>(memory, std::free), bytes};
}

std::map<std::string, Operator>& operators() {
  static std::map<std::string, Operator> all;
  return all;
}

extern "C" {

// PyTorch's numbers of dtypes, and their bytes.
#define DTYPE(prefix, name, number) \
  int32_t prefix##_dtype_##name() { return number; }
DTYPE(aoti_torch, uint8, 0)
DTYPE(aoti_torch, int8, 1)
DTYPE(aoti_torch, int16, 2)
DTYPE(aoti_torch, int32, 3)
DTYPE(aoti_torch, int64, 4)
DTYPE(aoti_torch, float16, 5)
DTYPE(aoti_torch, float32, 6)
DTYPE(aoti_torch, float64, 7)
DTYPE(aoti_torch, complex32, 8)
DTYPE(aoti_torch, complex64, 9)
DTYPE(aoti_torch, complex128, 10)
DTYPE(aoti_torch, bool, 11)
DTYPE(aoti_torch, bfloat16, 15)
DTYPE(aoti_torch, float8_e5m2, 23)
DTYPE(aoti_torch, float8_e4m3fn, 24)
DTYPE(aoti_torch, float8_e5m2fnuz, 25)
DTYPE(aoti_torch, float8_e4m3fnuz, 26)
DTYPE(aoti_torch, uint16, 27)
DTYPE(aoti_torch, uint32, 28)
DTYPE(aoti_torch, uint64, 29)
DTYPE(torch, float8_e8m0fnu, 44)
DTYPE(torch, float4_e2m1fn_x2, 45)
#undef DTYPE

size_t aoti_torch_dtype_element_size(int32_t dtype) {
  static const std::map<int32_t, size_t> bytes{{0, 1}, {4, 8}, {5, 2}, {6, 4}, {7, 8}, {15, 2}};
  return bytes.at(dtype);
}

uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }
int32_t aoti_torch_device_type_cpu() { return 0; }
int32_t aoti_torch_layout_strided() { return 0; }
int32_t aoti_torch_memory_format_contiguous_format() { return 0; }

#define GET(name, Type, value)                                 \
  AOTITorchError name(AtenTensorHandle handle, Type* result) { \
    [[maybe_unused]] PlainTensor& tensor = tensor_at(handle);  \
    *result = value;                                           \
    return 0;                                                  \
  }
GET(aoti_torch_get_device_type, int32_t, 0)
GET(aoti_torch_get_dim, int64_t, static_cast<int64_t>(tensor.sizes.size()))
GET(aoti_torch_get_dtype, int32_t, tensor.dtype)
GET(aoti_torch_get_sizes, int64_t*, tensor.sizes.data())
GET(aoti_torch_get_strides, int64_t*, tensor.strides.data())
GET(aoti_torch_get_storage_offset, int64_t, tensor.offset)
GET(aoti_torch_get_storage_size, int64_t, tensor.storage.bytes)
GET(torch_get_const_data_ptr, const void*, tensor.data())
GET(torch_get_mutable_data_ptr, void*, tensor.data())
GET(aoti_torch_new_tensor_handle, AtenTensorHandle, handle_of(tensor))
#undef GET

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle handle) {
  delete &tensor_at(handle);
  return 0;
}

AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t*, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* result) {
  *result = handle_of(empty(dtype, {sizes, sizes + dim}));
  return 0;
}

AOTITorchError torch_from_blob(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides,
                               int64_t offset, int32_t dtype, int32_t, int32_t, AtenTensorHandle* result,
                               int32_t, const uint8_t*, int64_t, void (*deleter)(void*, void*),
                               void* context) {
  PlainTensor tensor{{}, dtype, {sizes, sizes + dim}, {strides, strides + dim}, offset};
  tensor.storage = {std::shared_ptr<void>(data, [=](void* memory) { deleter(memory, context); }),
                    tensor.numel() * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype))};
  *result = handle_of(std::move(tensor));
  return 0;
}

// The only operator that csrc/ calls is aten::contiguous.
AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  if (std::strcmp(name, "aten::contiguous") != 0) std::abort();
  const auto argument = reinterpret_cast<AtenTensorHandle>(stack[0]);
  stack[0] = reinterpret_cast<StableIValue>(handle_of(contiguous(tensor_at(argument))));
  return aoti_torch_delete_tensor_object(argument);
}

AOTITorchError torch_get_num_threads(uint32_t* result) {
  *result = threads;
  return 0;
}

// "name(Tensor x, Tensor? y, bool z) -> (Tensor a, Tensor b)"
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char* schema) {
  const std::string text(schema);
  const size_t open = text.find('('), close = text.find(") -> ");
  Operator& op = operators()[text.substr(0, open)];
  std::istringstream arguments(text.substr(open + 1, close - open - 1)), results(text.substr(close + 5));
  for (std::string part; std::getline(arguments >> std::ws, part, ',');)
    op.optional.push_back(part.find("? ") != std::string::npos);
  for (std::string part; std::getline(results, part, ',');) ++op.results;
  return 0;
}

AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name,
                                  void (*function)(StableIValue*, uint64_t, uint64_t), uint64_t) {
  operators()[name].function = function;
  return 0;
}

AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, uint32_t, TorchLibraryHandle*) {
  return 0;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle*) {
  return 0;
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return 0; }

// Of operators that take or return strings and lists, which are not called here.
#define NEVER_CALLED(name, ...) \
  AOTITorchError name(__VA_ARGS__) { std::abort(); }
NEVER_CALLED(torch_delete_list, StableListHandle)
NEVER_CALLED(torch_list_get_item, StableListHandle, size_t, StableIValue*)
NEVER_CALLED(torch_list_push_back, StableListHandle, StableIValue)
NEVER_CALLED(torch_list_size, StableListHandle, size_t*)
NEVER_CALLED(torch_new_list_reserve_size, size_t, StableListHandle*)
NEVER_CALLED(torch_delete_string, StringHandle)
NEVER_CALLED(torch_new_string_handle, const char*, size_t, StringHandle*)
NEVER_CALLED(torch_string_c_str, StringHandle, const char**)
NEVER_CALLED(torch_string_length, StringHandle, size_t*)
#undef NEVER_CALLED

}  // extern "C"
