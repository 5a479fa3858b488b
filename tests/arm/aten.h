// The part of PyTorch's C++ interface that csrc/ uses, without PyTorch: tensors that lie in plain memory.
//
// It stands in for every ATen, c10 and torch header, so that binding.cpp and the engine behind it can be
// compiled for a processor for which there is an emulator, but no PyTorch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace at {

// Numbered as in DTYPES of emulated.py.
enum ScalarType : int64_t { kByte, kLong, kFloat, kDouble, kBFloat16, kHalf };

inline int64_t element_bytes(ScalarType dtype) { return std::array{1, 8, 4, 8, 2, 2}[dtype]; }
inline std::ostream& operator<<(std::ostream& to, ScalarType dtype) {
  return to << std::array{"Byte", "Long", "Float", "Double", "BFloat16", "Half"}[dtype];
}

class IntArrayRef {
 public:
  IntArrayRef(std::initializer_list<int64_t> values) : data_(values.begin()), size_(values.size()) {}
  IntArrayRef(const std::vector<int64_t>& values) : data_(values.data()), size_(values.size()) {}
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + size_; }
  size_t size() const { return size_; }
  int64_t operator[](size_t n) const { return data_[n]; }
  bool operator==(const IntArrayRef& other) const {
    return size_ == other.size_ && std::equal(begin(), end(), other.begin());
  }

 private:
  const int64_t* data_;
  size_t size_;
};

inline std::ostream& operator<<(std::ostream& to, const IntArrayRef& values) {
  for (size_t n = 0; n < values.size(); ++n) to << (n ? ", " : "[") << values[n];
  return to << "]";
}

struct Device {
  bool is_cpu() const { return true; }
};
inline std::ostream& operator<<(std::ostream& to, Device) { return to << "cpu"; }

struct Storage {
  std::shared_ptr<char> memory;
  size_t bytes = 0;
  size_t nbytes() const { return bytes; }
};

// Memory that holds what no kernel wrote shows as NaN.
inline Storage allocate(size_t bytes) {
  const size_t padded = (bytes + 63) / 64 * 64 + 64;
  char* memory = static_cast<char*>(std::aligned_alloc(64, padded));
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0xff, padded);
  return {std::shared_ptr<char>(memory, std::free), bytes};
}

inline int64_t product(IntArrayRef sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) result *= size;
  return result;
}

class Tensor {
 public:
  Tensor() = default;
  Tensor(Storage storage, ScalarType dtype, IntArrayRef sizes, IntArrayRef strides, int64_t offset)
      : storage_(std::move(storage)),
        dtype_(dtype),
        sizes_(sizes.begin(), sizes.end()),
        strides_(strides.begin(), strides.end()),
        offset_(offset) {}

  static Tensor empty(IntArrayRef sizes, ScalarType dtype) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t n = sizes.size(); n-- > 1;) strides[n - 1] = strides[n] * std::max<int64_t>(sizes[n], 1);
    const int64_t bytes = product(sizes) * element_bytes(dtype);
    return {allocate(static_cast<size_t>(bytes)), dtype, sizes, strides, 0};
  }
  Tensor new_empty(IntArrayRef sizes) const { return empty(sizes, dtype_); }

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t n) const { return sizes_[static_cast<size_t>(n)]; }
  int64_t stride(int64_t n) const { return strides_[static_cast<size_t>(n)]; }
  IntArrayRef sizes() const { return sizes_; }
  IntArrayRef strides() const { return strides_; }
  int64_t storage_offset() const { return offset_; }
  int64_t numel() const { return product(sizes_); }
  ScalarType scalar_type() const { return dtype_; }
  size_t itemsize() const { return static_cast<size_t>(element_bytes(dtype_)); }
  Device device() const { return {}; }
  const Storage& storage() const { return storage_; }
  void* mutable_data_ptr() const { return storage_.memory.get() + offset_ * element_bytes(dtype_); }
  const void* const_data_ptr() const { return mutable_data_ptr(); }
  template <class Item>
  const Item* const_data_ptr() const {
    return static_cast<const Item*>(const_data_ptr());
  }

  Tensor contiguous() const {
    Tensor result = new_empty(sizes_);
    if (result.strides() == strides()) return *this;
    char* to = static_cast<char*>(result.mutable_data_ptr());
    for (int64_t n = 0; n < numel(); ++n) {
      int64_t at = 0, left = n;
      for (int64_t d = dim(); d-- > 0; left /= size(d)) at += left % size(d) * stride(d);
      const auto* from = static_cast<const char*>(const_data_ptr()) + at * element_bytes(dtype_);
      std::memcpy(to + n * element_bytes(dtype_), from, itemsize());
    }
    return result;
  }

 private:
  Storage storage_;
  ScalarType dtype_ = kByte;
  std::vector<int64_t> sizes_, strides_;
  int64_t offset_ = 0;
};

inline Tensor empty(IntArrayRef sizes, ScalarType dtype) { return Tensor::empty(sizes, dtype); }

// Threads that a call may use, as the Python side has set them.
inline int threads = 1;
inline int get_num_threads() { return threads; }
inline bool in_parallel_region() { return false; }

namespace detail {
inline size_t computeStorageNbytes(IntArrayRef sizes, IntArrayRef strides, size_t itemsize, int64_t offset) {
  int64_t last = offset;
  for (size_t n = 0; n < sizes.size(); ++n) {
    if (sizes[n] == 0) return 0;
    last += (sizes[n] - 1) * strides[n];
  }
  return static_cast<size_t>(last + 1) * itemsize;
}
}  // namespace detail

}  // namespace at

namespace c10 {
inline int64_t elementSize(at::ScalarType dtype) { return at::element_bytes(dtype); }

template <class Key, class Value>
struct Dict {
  void insert(Key, Value) {}
};

template <class... Parts>
std::string written(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}
}  // namespace c10

#define LSTM_FUSED_CHECK(Error, condition, ...) \
  if (!(condition)) throw Error(c10::written(__VA_ARGS__))
#define TORCH_CHECK(...) LSTM_FUSED_CHECK(std::runtime_error, __VA_ARGS__)
#define TORCH_CHECK_VALUE(...) LSTM_FUSED_CHECK(std::invalid_argument, __VA_ARGS__)
#define TORCH_CHECK_TYPE(...) LSTM_FUSED_CHECK(std::domain_error, __VA_ARGS__)

namespace torch {

// The arguments of a call, as emulated.py writes them: a letter that says what follows, and its bytes.
class Arguments {
 public:
  explicit Arguments(std::istream& from) : from_(from) {}

  template <class Item>
  Item raw() {
    Item item;
    from_.read(reinterpret_cast<char*>(&item), sizeof item);
    return item;
  }
  std::vector<int64_t> ints() {
    std::vector<int64_t> result(static_cast<size_t>(raw<int64_t>()));
    for (int64_t& value : result) value = raw<int64_t>();
    return result;
  }

  void read(bool& to) { expect('b'), to = raw<int64_t>() != 0; }
  void read(double& to) { expect('d'), to = raw<double>(); }
  void read(at::Tensor& to) {
    expect('t');
    const auto dtype = raw<at::ScalarType>();
    const auto sizes = ints(), strides = ints();
    const int64_t offset = raw<int64_t>(), bytes = raw<int64_t>();
    at::Storage storage = at::allocate(static_cast<size_t>(bytes));
    from_.read(storage.memory.get(), bytes);
    to = {storage, dtype, sizes, strides, offset};
  }
  template <class Item>
  void read(std::optional<Item>& to) {
    if (from_.peek() == 'n') return expect('n');
    read(to.emplace());
  }

 private:
  void expect(char kind) {
    if (const char found = raw<char>(); found != kind)
      throw std::logic_error(c10::written("expected an argument ", kind, ", got ", found));
  }

  std::istream& from_;
};

// Registered operators: each takes its arguments from a call and returns tensors.
struct Operators {
  static inline std::map<std::string, std::function<std::vector<at::Tensor>(Arguments&)>> all;

  template <class... Results, class... Args>
  void impl(const char* name, std::tuple<Results...> (*op)(Args...)) {
    all[name] = [op](Arguments& call) {
      std::tuple<std::decay_t<Args>...> args;
      std::apply([&](auto&... arg) { (call.read(arg), ...); }, args);
      return std::apply([](const Results&... result) { return std::vector<at::Tensor>{result...}; },
                        std::apply(op, args));
    };
  }
  template <class... Ignored>
  void def(const Ignored&...) {}
};

}  // namespace torch

// Runs the block that follows, of which there is one of each kind.
#define TORCH_LIBRARY_FRAGMENT(library, m) LSTM_FUSED_BLOCK(define_operators, m)
#define TORCH_LIBRARY_IMPL(library, key, m) LSTM_FUSED_BLOCK(implement_operators, m)
#define LSTM_FUSED_BLOCK(name, m)                                                \
  void name(torch::Operators&);                                                  \
  [[maybe_unused]] const bool name##_done = (name(*new torch::Operators), true); \
  void name(torch::Operators& m)
