// A pool of freed blocks.
#include "runtime/memory.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace lstm_fused {
namespace {

std::atomic<bool> fills_new_memory{false};

size_t rounded(size_t bytes) {
  if (bytes < pool_min_bytes) return (bytes + 63) / 64 * 64;
  constexpr size_t page = 4 << 10;
  const size_t multiple = bytes < huge_page_bytes ? page : huge_page_bytes;
  return (bytes + multiple - 1) / multiple * multiple;
}

// Null if there is no memory left.
void* fresh(size_t bytes, [[maybe_unused]] size_t wanted) {
  void* data = std::aligned_alloc(bytes < huge_page_bytes ? 64 : huge_page_bytes, bytes);
#ifdef MADV_HUGEPAGE
  // The end stays in small pages: it may be a few bytes, for which a huge page would be wasted.
  if (data && bytes >= huge_page_bytes)
    madvise(data, wanted / huge_page_bytes * huge_page_bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// Holds a lock if it is free: a caller that finds the pool locked does without it. In a process forked while
// another thread held the lock, it stays locked for ever.
class TryLock {
 public:
  explicit TryLock(std::atomic_flag& flag)
      : flag_(flag.test_and_set(std::memory_order_acquire) ? nullptr : &flag) {}
  TryLock(const TryLock&) = delete;
  ~TryLock() {
    if (flag_) flag_->clear(std::memory_order_release);
  }
  explicit operator bool() const { return flag_ != nullptr; }

 private:
  std::atomic_flag* flag_;
};

// Keeps blocks that nothing uses, the longest unused first.
class Pool {
 public:
  // Never destroyed: tensors may outlive every static object.
  static Pool& instance() {
    static Pool& pool = *new Pool;
    return pool;
  }

  Block take(size_t wanted) {
    const size_t bytes = rounded(wanted);
    if (const TryLock lock{locked_}; lock && bytes >= pool_min_bytes) {
      // The latest first: it may still be in the caches.
      for (auto block = kept_.rbegin(); block != kept_.rend(); ++block)
        if (block->bytes >= bytes && block->bytes <= bytes + bytes / pool_slack) {
          const Block found = *block;
          kept_.erase(std::next(block).base());
          kept_bytes_ -= found.bytes;
          return found;
        }
    }
    if (void* data = fresh(bytes, wanted)) return {data, bytes};
    if (const TryLock lock{locked_}) keep_at_most(0);
    if (void* data = fresh(bytes, wanted)) return {data, bytes};
    // Torch's message, which some programs look for to try again with less.
    throw std::runtime_error(
        "lstm_fused: DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
        std::to_string(wanted) + " bytes.");
  }

  void keep(Block block) {
    const TryLock lock{locked_};
    if (!lock || block.bytes < pool_min_bytes || block.bytes > pool_max_bytes) return std::free(block.data);
    keep_at_most(pool_max_bytes - block.bytes);
    kept_.push_back(block);
    kept_bytes_ += block.bytes;
  }

 private:
  // Reserves room for the largest number of blocks, so that freeing a tensor allocates nothing.
  Pool() { kept_.reserve(pool_max_bytes / pool_min_bytes); }

  // Frees the longest unused blocks beyond so many bytes. The caller holds the lock.
  void keep_at_most(size_t bytes) {
    auto block = kept_.begin();
    for (; kept_bytes_ > bytes; ++block) {
      std::free(block->data);
      kept_bytes_ -= block->bytes;
    }
    kept_.erase(kept_.begin(), block);
  }

  std::atomic_flag locked_;
  std::vector<Block> kept_;
  size_t kept_bytes_ = 0;
};

}  // namespace

Block take_block(size_t bytes) {
  const Block block = Pool::instance().take(bytes);
  fill_if_asked(block.data, block.bytes);
  return block;
}

void give_block(Block block) { Pool::instance().keep(block); }

void fill_new_memory(bool fill) { fills_new_memory.store(fill, std::memory_order_relaxed); }

void fill_if_asked(void* data, size_t bytes) {
  // All bits set are NaN in every dtype.
  if (bytes > 0 && fills_new_memory.load(std::memory_order_relaxed)) std::memset(data, 0xff, bytes);
}

}  // namespace lstm_fused
