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

namespace lstm_fused {
namespace {

// Smaller tensors the C library's own allocator keeps at hand.
constexpr size_t smallest = 64 << 10;
// What is kept unused at most: a layer of the larger sizes in bench/sizes.py. To map and clear memory at
// every step takes as long as a quarter of a training step's arithmetic.
constexpr size_t most_kept = 256 << 20;
constexpr size_t large_page = 2 << 20;

struct Block {
  void* data;
  size_t bytes;
};

size_t rounded(size_t bytes) {
  constexpr size_t page = 4 << 10;
  const size_t unit = bytes < large_page ? page : large_page;
  return (bytes + unit - 1) / unit * unit;
}

// Null where there is no more.
void* fresh(size_t bytes, size_t wanted) {
  void* data = std::aligned_alloc(bytes < large_page ? 64 : large_page, bytes);
#ifdef MADV_HUGEPAGE
  // To map 4 KB at a time costs as much as to compute what is written there. The end, which may be a large
  // page for a few bytes, is left to small ones.
  if (data && bytes >= large_page) madvise(data, wanted / large_page * large_page, MADV_HUGEPAGE);
#endif
  return data;
}

// Blocks that no tensor uses, the longest unused first. Whoever finds it locked does without it: a process
// forked while another thread held the lock would wait for ever.
class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(take(bytes));
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return {block->data, block, give_back, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  // Never destroyed, for tensors may outlive every static object.
  static Pool& instance() {
    static Pool& pool = *new Pool;
    return pool;
  }

 private:
  // As many blocks as may be kept: what is given back needs no memory for that.
  Pool() { kept_.reserve(most_kept / smallest); }

  Block take(size_t wanted) {
    const size_t bytes = rounded(wanted);
    if (const std::unique_lock lock{mutex_, std::try_to_lock}) {
      // The latest first, for it may still be in the caches; but no block is to be mostly empty.
      for (auto block = kept_.rbegin(); block != kept_.rend(); ++block)
        if (block->bytes >= bytes && block->bytes <= bytes + bytes / 4) {
          const Block found = *block;
          kept_.erase(std::next(block).base());
          kept_bytes_ -= found.bytes;
          return found;
        }
    }
    if (void* data = fresh(bytes, wanted)) return {data, bytes};
    if (const std::unique_lock lock{mutex_, std::try_to_lock}) keep_at_most(0);
    if (void* data = fresh(bytes, wanted)) return {data, bytes};
    // In torch's words, for which some programs look, to try again with less.
    TORCH_CHECK(false, "lstm_fused: DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
                wanted, " bytes.");
  }

  void keep(Block block) {
    const std::unique_lock lock{mutex_, std::try_to_lock};
    if (!lock || block.bytes > most_kept) return std::free(block.data);
    keep_at_most(most_kept - block.bytes);
    kept_.push_back(block);
    kept_bytes_ += block.bytes;
  }

  // Frees the longest unused beyond so many bytes. By whoever holds the lock.
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
  // In deterministic mode PyTorch fills new tensors, to show what was never written.
  if (bytes < smallest || at::globalContext().deterministicAlgorithms()) return like.new_empty(shape);
  return at::detail::empty_generic(shape, &Pool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   like.scalar_type(), std::nullopt);
}

}  // namespace lstm_fused
