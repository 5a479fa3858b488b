// Tensors that lie in plain memory, and the operators that csrc/ registers: what shim.cpp has behind
// PyTorch's C interface.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct Storage {
  std::shared_ptr<void> memory;
  int64_t bytes = 0;
};

struct PlainTensor {
  Storage storage;
  int32_t dtype;
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;

  char* data() const;
  int64_t numel() const;
};

AtenTensorHandle handle_of(PlainTensor tensor);
const PlainTensor& tensor_of(AtenTensorHandle handle);

// Memory in which bytes that nothing wrote show as NaN.
Storage allocate(int64_t bytes);

struct Operator {
  void (*function)(StableIValue*, uint64_t, uint64_t) = nullptr;
  std::vector<bool> optional;  // arguments
  uint64_t results = 0;        // all tensors
};
std::map<std::string, Operator>& operators();

// Threads that a call may use, as the Python side has set them.
inline uint32_t threads = 1;
