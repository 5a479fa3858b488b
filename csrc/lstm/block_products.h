// The products of a thread's own rows, formed during the backward recurrence after every block of steps,
// whose da are still in L2: dxw is neither stored nor read again.
//
// The factors of the weight gradients are read where they lie, each step of the block a part of their depth:
// da in the recurrence's operand rows, x and h_{t-1} in theirs if these are dense and fill whole panels; else
// they are packed.
#pragma once

#include "lstm/products.h"

namespace lstm_fused::LSTM_FUSED_ISA {

template <class scalar_t>
class BlockProducts {
 public:
  BlockProducts(const Backward<scalar_t>& args, const Slice& s, int rank)
      : args_(*args.products),
        q_(args.sequence),
        da_(args.da_operand),
        row_begin_(s.row_begin),
        rows_(s.row_end - s.row_begin),
        sums_(sums_of(rank)) {}

  // Forms those of steps [begin, end) in the order of the recurrence, which has just reached `begin`.
  void multiply(int64_t begin, int64_t end) {
    if (args_.dx) form_dx(begin, end);
    const int64_t I = args_.I, P = args_.P;
    if (args_.dweight_ih)
      add({0, ceil_div(I, NR<scalar_t>), I, sums_, args_.dweight_ih}, own(args_.block_x, I), begin, end,
          [&](int64_t n) { return Factor{args_.x.at(q_.step(n), row_begin_), args_.x.b_stride}; });
    if (args_.dweight_hh)
      add({0, ceil_div(P, NR<scalar_t>), P, sums_ + args_.M * I, args_.dweight_hh}, own(args_.block_h, P),
          begin, end, [&](int64_t n) {
            return n == 0 ? Factor{args_.h0 + row_begin_ * P, P}
                          : Factor{args_.y.at(q_.previous(q_.step(n)), row_begin_), args_.y.b_stride};
          });
    first_ = false;
  }

  // Adds up the sums of all threads, in a fixed order.
  void reduce(const Slice& all) const {
    all.sync();  // sums of all threads
    add_up(all, 0, args_.M * args_.I, args_.dweight_ih);
    add_up(all, args_.M * args_.I, args_.M * args_.P, args_.dweight_hh);
  }

 private:
  // A factor at one step: this thread's rows of x or h_{t-1}.
  struct Factor {
    const scalar_t* first;
    int64_t stride;
  };

  // This thread's part of packed rows.
  scalar_t* own(scalar_t* packed, int64_t N) const {
    return packed + row_begin_ * da_.slots * ceil_div(N, NR<scalar_t>) * NR<scalar_t>;
  }
  scalar_t* sums_of(int64_t rank) const { return args_.block_sums + rank * args_.M * (args_.I + args_.P); }

  void form_dx(int64_t begin, int64_t end) {
    ProductRow<scalar_t>* all = args_.block_rows + row_begin_ * da_.slots;
    int64_t K = 0;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t b = row_begin_; b < row_begin_ + rows_; ++b)
        all[K++] = {da_.row(n, b), nullptr, nullptr, nullptr, args_.dx + (q_.step(n) * q_.B + b) * args_.I};
    for (int64_t r = 0; r < K; r += args_.rows_at_once)
      multiply_dx(args_, all + r, min(args_.rows_at_once, K - r), 0);
  }

  // Adds a block's products to a weight's sums; at(n) is the other factor at the n-th step.
  template <class At>
  void add(const WeightGradient<scalar_t>& weight, scalar_t* packed, int64_t begin, int64_t end, At at) {
    const int64_t N = weight.N, K = (end - begin) * rows_;
    // Strides differ at most between h0, at the first step, and y.
    const bool dense = N % NR<scalar_t> == 0 && at(begin).stride == N && at(end - 1).stride == N;
    const auto row = [&](int64_t k) {
      const Factor factor = at(begin + k / rows_);
      return factor.first + k % rows_ * factor.stride;
    };
    if (!dense) pack_rows(row, N, 0, K, K, packed);
    const auto part = [&](int n) -> PackedWeights<scalar_t> {
      if (dense) return {at(begin + n).first, rows_, NR<scalar_t>, N};
      return {packed + n * rows_ * NR<scalar_t>, rows_, K * NR<scalar_t>};
    };
    accumulate(weight, 0, args_.M, first_, false, [&](auto& macrotile, bool first) {
      macrotile.add_parts(
          static_cast<int>(end - begin), da_.stride(),
          [&](int n, int64_t m) { return da_.row(begin + n, row_begin_) + m; }, part, first);
    });
  }

  void add_up(const Slice& all, int64_t from, int64_t count, scalar_t* gradient) const {
    const int64_t vectors = ceil_div(count, lanes<scalar_t>);
    for (int64_t v = all.begin(vectors); gradient && v < all.end(vectors); ++v) {
      const int64_t k = v * lanes<scalar_t>;
      Vec<scalar_t> sum = load(sums_of(0) + from + k, count - k);
      for (int rank = 1; rank < all.size; ++rank) sum += load(sums_of(rank) + from + k, count - k);
      store(gradient + k, sum, count - k);
    }
  }

  const Products<scalar_t>& args_;
  const Sequence& q_;
  const OperandBuffer<scalar_t>& da_;
  const int64_t row_begin_, rows_;  // this thread's rows, and their number
  scalar_t* sums_;
  bool first_ = true;
};

// Never planned: VNNI pairs of da would have to be packed.
template <>
class BlockProducts<BFloat16> {
 public:
  BlockProducts(const Backward<BFloat16>&, const Slice&, int) {}
  void multiply(int64_t, int64_t) {}
  void reduce(const Slice&) const {}
};

}  // namespace lstm_fused::LSTM_FUSED_ISA
