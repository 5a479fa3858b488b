// A pool of freed blocks behind torch's allocator interface.
#include "runtime/memory.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/new_empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "thresholds.h"

namespace lstm_fused {
namespace {

struct Block {
  void* data;
  size_t bytes;
};

size_t rounded(size_t bytes) {
  constexpr size_t page = 4 << 10;
  const size_t multiple = bytes < huge_page_bytes ? page : huge_page_bytes;
  return (bytes + multiple - 1) / multiple * multiple;
}

// Null if there is no memory left.
void* fresh(size_t bytes, size_t wanted) {
  void* data = std::aligned_alloc(bytes < huge_page_bytes ? 64 : huge_page_bytes, bytes);
#ifdef MADV_HUGEPAGE
  // The end stays in small pages: it may be a few bytes, for which a huge page would be wasted.
  if (data && bytes >= huge_page_bytes)
    madvise(data, wanted / huge_page_bytes * huge_page_bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// Keeps blocks that no tensor uses, the longest unused first. A caller that finds the pool locked does
// without it: in a process forked while another thread held the lock, it stays locked for ever.
class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(take(bytes));
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return {block->data, block, give_back, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  // Never destroyed: tensors may outlive every static object.
  static Pool& instance() {
    static Pool& pool = *new Pool;
    return pool;
  }

 private:
  // Reserves room for the largest number of blocks, so that freeing a tensor allocates nothing.
  Pool() { kept_.reserve(pool_max_bytes / pool_min_bytes); }

  Block take(size_t wanted) {
    const size_t bytes = rounded(wanted);
    if (const std::unique_lock lock{mutex_, std::try_to_lock}) {
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
    if (const std::unique_lock lock{mutex_, std::try_to_lock}) keep_at_most(0);
    if (void* data = fresh(bytes, wanted)) return {data, bytes};
    // Torch's message, which some programs look for to try again with less.
    TORCH_CHECK(false, "lstm_fused: DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
                wanted, " bytes.");
  }

  void keep(Block block) {
    const std::unique_lock lock{mutex_, std::try_to_lock};
    if (!lock || block.bytes > pool_max_bytes) return std::free(block.data);
    keep_at_most(pool_max_bytes - block.bytes);
    kept_.push_back(block);
    kept_bytes_ += block.bytes;
  }

  // Frees the longest unused blocks beyond so many bytes. The caller holds the lock.
  void keep_at_most(size_t bytes) {
    auto block = kept_.begin();
    for (; kept_bytes_ > bytes; ++block) {
      std::free(block->data);
      kept_bytes_ -= block->bytes;
    }
    kept_.erase(kept_.begin(), block);
  }

  static void give_back(void* context) {
    const std::unique_ptr<Block> block{static_cast<Block*>(context)};
    c10::profiledCPUMemoryReporter().Delete(block->data);
    instance().keep(*block);
  }

  std::mutex mutex_;
  std::vector<Block> kept_;
  size_t kept_bytes_ = 0;
};

}  // namespace

at::Tensor empty(const at::Tensor& like, at::IntArrayRef shape) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(shape)) * like.element_size();
  // In deterministic mode PyTorch fills new tensors, to expose elements that were never written.
  if (bytes < pool_min_bytes || at::globalContext().deterministicAlgorithms()) return like.new_empty(shape);
  return at::detail::empty_generic(shape, &Pool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   like.scalar_type(), std::nullopt);
}

}  // namespace lstm_fused
