// Allocates tensors and workspaces in memory that earlier calls have left.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <vector>

#include "thresholds.h"

namespace lstm_fused {

// As `like.new_empty(shape)`; a large tensor reuses the memory of one that was freed.
at::Tensor empty(const at::Tensor& like, at::IntArrayRef shape);

// Memory for the duration of a call, 64-byte aligned. What fits comes from the stack: small calls allocate
// little.
class Workspace {
 public:
  template <class Item>
  Item* take(int64_t count) {
    if (count == 0) return nullptr;
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
    if (bytes <= left_) {
      left_ -= bytes;
      return reinterpret_cast<Item*>(stack_ + left_);
    }
    held_.push_back(empty(bytes_, {bytes}));
    return static_cast<Item*>(held_.back().mutable_data_ptr());
  }

 private:
  alignas(64) char stack_[workspace_stack_bytes];
  int64_t left_ = workspace_stack_bytes;
  at::Tensor bytes_ = at::empty({0}, at::kByte);
  std::vector<at::Tensor> held_;
};

}  // namespace lstm_fused
