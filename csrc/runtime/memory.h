// Blocks of memory that later calls use again, and workspaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "thresholds.h"

namespace lstm_fused {

struct Block {
  void* data;
  size_t bytes;  // at least as many as were asked for
};

// So many bytes of memory, 64-byte aligned: new, or, from pool_min_bytes on, what an earlier caller gave
// back. Throws std::runtime_error with torch's message if there is none.
Block take_block(size_t bytes);
void give_block(Block block);

// Whether new memory is filled with NaN, to expose elements that are never written; for tests.
void fill_new_memory(bool fill);
void fill_if_asked(void* data, size_t bytes);

// Memory for the duration of a call, 64-byte aligned. What fits comes from the stack: small calls allocate
// little.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  ~Workspace() {
    for (const Block& block : held_) give_block(block);
  }

  template <class Item>
  Item* take(int64_t count) {
    if (count == 0) return nullptr;
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
    if (bytes <= left_) {
      left_ -= bytes;
      return reinterpret_cast<Item*>(stack_ + left_);
    }
    held_.reserve(held_.size() + 1);
    held_.push_back(take_block(static_cast<size_t>(bytes)));
    return static_cast<Item*>(held_.back().data);
  }

 private:
  alignas(64) char stack_[workspace_stack_bytes];
  int64_t left_ = workspace_stack_bytes;
  std::vector<Block> held_;
};

}  // namespace lstm_fused
