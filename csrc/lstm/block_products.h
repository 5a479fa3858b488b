// The products of a thread's own rows, formed during the backward recurrence after every block of steps,
// whose da are still in L2: dxw is neither stored nor read again.
//
// The factors of the weight gradients are read where they lie: da in the recurrence's operand rows, x and
// h_{t-1} in theirs, each step of the block a part of their depth, if these are dense, fill whole panels and
// are not too few; else they are packed. Where rows of the batch lack a step of the block, all are packed,
// without those.
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
        rank_(rank),
        listed_(args_.block_rows + row_begin_ * da_.slots) {}

  // Forms those of steps [begin, end) in the order of the recurrence, which has just reached `begin`.
  void multiply(int64_t begin, int64_t end) {
    const auto [K, complete] = list(begin, end);
    if (K == 0) return;
    if (args_.dx)
      for (int64_t r = 0; r < K; r += args_.rows_at_once)
        multiply_dx(args_, listed_ + r, min(args_.rows_at_once, K - r), 0);
    if (complete)
      add_all(begin, end);
    else
      for (int64_t k = 0; k < K; k += args_.KC) add_listed(listed_ + k, min(args_.KC, K - k));
    first_ = false;
  }

  // Adds up the sums of all threads, in a fixed order.
  void reduce(const Slice& all) const {
    for (const WeightGradient<scalar_t>& weight : {ih(rank_), hh(rank_)})
      for (int64_t k = 0; first_ && k < args_.M * weight.stride; ++k) weight.sums[k] = 0;  // no row has steps
    all.sync();  // sums of all threads
    add_up(all, ih(0));
    add_up(all, hh(0));
  }

 private:
  // A factor at one step: this thread's rows of x or h_{t-1}.
  struct Factor {
    const scalar_t* first;
    int64_t stride;
  };

  // dW_ih and dW_hh with the sums of a thread, whose rows are whole panels; no panels if they are not needed.
  WeightGradient<scalar_t> ih(int rank) const {
    const int64_t panels = args_.dweight_ih ? ceil_div(args_.I, NR<scalar_t>) : 0;
    return weight_gradient(panels, args_.I, args_.block_sums_ih, args_.dweight_ih, rank);
  }
  WeightGradient<scalar_t> hh(int rank) const {
    const int64_t panels = args_.dweight_hh ? ceil_div(args_.P, NR<scalar_t>) : 0;
    return weight_gradient(panels, args_.P, args_.block_sums_hh, args_.dweight_hh, rank);
  }
  WeightGradient<scalar_t> weight_gradient(int64_t panels, int64_t N, acc_t<scalar_t>* sums,
                                           scalar_t* gradient, int rank) const {
    const int64_t stride = panels * NR<scalar_t>;
    return {0, panels, N, sums + rank * args_.M * stride, gradient, stride};
  }
  // This thread's part of packed rows.
  scalar_t* own(scalar_t* packed, const WeightGradient<scalar_t>& weight) const {
    return packed + row_begin_ * da_.slots * weight.stride;
  }

  // The number of valid steps, and whether every row has every step of the block and, except at the
  // recurrence's first, the step before it.
  struct Listed {
    int64_t count = 0;
    bool complete = true;
  };

  // Lists the factors of the valid steps, x and h_{t-1} with lengths alone, and sets dx of the others to
  // zero.
  Listed list(int64_t begin, int64_t end) {
    const bool x = q_.lengths && args_.dweight_ih, h = q_.lengths && args_.dweight_hh;
    Listed listed;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t t = q_.step(n), b = row_begin_; b < row_begin_ + rows_; ++b) {
        scalar_t* dx = args_.dx ? args_.dx + (t * q_.B + b) * args_.I : nullptr;
        const bool valid = t < q_.length(b), starts = t == q_.first(b);
        listed.complete = listed.complete && valid && starts == (n == 0);
        if (valid)
          listed_[listed.count++] = {da_.row(n, b), da_.row(n, b), x ? args_.x.at(t, b) : nullptr,
                                     h ? previous_h(args_, t, b) : nullptr, dx};
        else
          for (int64_t j = 0; dx && j < args_.I; ++j) dx[j] = {};
      }
    return listed;
  }

  // Adds the products of K listed rows, which are packed.
  void add_listed(const ProductRow<scalar_t>* rows, int64_t K) {
    OperandBuffer<scalar_t> operand = args_.da_operand;
    operand.data = operand.row(0, rank_ * args_.rows_at_once), operand.K = K;
    const WeightGradient<scalar_t> of_x = ih(rank_), of_h = hh(rank_);
    scalar_t *x = own(args_.block_x, of_x), *h = own(args_.block_h, of_h);
    if (args_.dweight_ih) pack_rows([&](int64_t k) { return rows[k].x; }, args_.I, 0, K, K, x);
    if (args_.dweight_hh) pack_rows([&](int64_t k) { return rows[k].h; }, args_.P, 0, K, K, h);
    const bool first = first_ && rows == listed_;
    for (int64_t m = 0; m < args_.M; m += args_.rows_at_once) {
      const int64_t count = min(args_.rows_at_once, args_.M - m);
      pack_da_operand([&](int64_t k) { return rows[k].dxw; }, m, count, args_.M, K, operand, 0);
      if (args_.dweight_ih) accumulate(of_x, m, count, first, false, operand, 0, x);
      if (args_.dweight_hh) accumulate(of_h, m, count, first, false, operand, 0, h);
    }
  }

  // Adds those of all rows, of a complete block.
  void add_all(int64_t begin, int64_t end) {
    if (args_.dweight_ih)
      add(ih(rank_), args_.block_x, begin, end,
          [&](int64_t n) { return Factor{args_.x.at(q_.step(n), row_begin_), args_.x.b_stride}; });
    if (args_.dweight_hh)
      add(hh(rank_), args_.block_h, begin, end, [&](int64_t n) {
        return Factor{previous_h(args_, q_.step(n), row_begin_), n == 0 ? args_.P : args_.y.b_stride};
      });
  }

  // Adds a block's products to a weight's sums; at(n) is the other factor at the n-th step.
  template <class At>
  void add(const WeightGradient<scalar_t>& weight, scalar_t* block, int64_t begin, int64_t end, At at) {
    const int64_t N = weight.N, K = (end - begin) * rows_;
    // Strides differ at most between h0, at the first step, and y.
    const bool dense = N % NR<scalar_t> == 0 && rows_ >= min_unpacked_block_rows && at(begin).stride == N &&
                       at(end - 1).stride == N;
    scalar_t* packed = own(block, weight);
    if (!dense)
      pack_rows(
          [&](int64_t k) {
            const Factor factor = at(begin + k / rows_);
            return factor.first + k % rows_ * factor.stride;
          },
          N, 0, K, K, packed);
    const int64_t parts = dense ? end - begin : 1;
    accumulate(weight, 0, args_.M, first_, false, [&](auto& macrotile, bool first) {
      macrotile.add_parts(
          static_cast<int>(parts), da_.stride(),
          [&](int n, int64_t m) { return da_.row(begin + n, row_begin_) + m; },
          [&](int n) -> PackedWeights<scalar_t> {
            if (dense) return {at(begin + n).first, rows_, NR<scalar_t>, N};
            return {packed, K, K * NR<scalar_t>};
          },
          first);
    });
  }

  // Adds the sums of all threads to those of the first, which follow one another.
  void add_up(const Slice& all, const WeightGradient<scalar_t>& first) const {
    for (int64_t m = all.begin(args_.M); m < all.end(args_.M); ++m)
      for (int64_t j = 0; first.panels > 0 && j < first.N; j += lanes<scalar_t>) {
        const acc_t<scalar_t>* part = first.sums + m * first.stride + j;
        Vec<scalar_t> sum = load(part);
        for (int rank = 1; rank < all.size; ++rank) sum += load(part += args_.M * first.stride);
        store(first.gradient + m * first.N + j, sum, first.N - j);
      }
  }

  const Products<scalar_t>& args_;
  const Sequence& q_;
  const OperandBuffer<scalar_t>& da_;
  const int64_t row_begin_, rows_;  // this thread's rows, and their number
  const int64_t rank_;
  ProductRow<scalar_t>* listed_;
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
