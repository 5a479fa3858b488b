// Calls the engine's products on checked arguments: plans, allocates results and workspace, starts threads.
#pragma once

#include <cstdint>
#include <numeric>
#include <tuple>
#include <type_traits>

#include "calls/common.h"

namespace lstm_fused {

// The factors of the products besides dxw and dhw; those of products that are not needed are missing.
struct ProductInputs {
  MaybeTensor x, weight_ih, y, h0, lengths;
  bool reverse;

  // Of M rows of da.
  ProductSizes sizes(const Sizes& sizes, int64_t M) const {
    const int64_t* valid = data<int64_t>(lengths);
    const int64_t K = valid ? std::accumulate(valid, valid + sizes.B, int64_t{0}) : sizes.T * sizes.B;
    return {K, M, sizes.I, sizes.P, weight_ih.has_value(), x.has_value(), y.has_value()};
  }
};

using ProductsOutputs = std::tuple<Tensor, Tensor, Tensor>;

template <class scalar_t>
ProductsOutputs empty_products(const Sizes& sizes, const ProductSizes& wanted) {
  const DType dtype = dtype_of<scalar_t>();
  return {wanted.dx ? empty(dtype, {sizes.T, sizes.B, wanted.I}) : empty(dtype, {0}),
          wanted.dweight_ih ? empty(dtype, {wanted.M, wanted.I}) : empty(dtype, {0}),
          wanted.dweight_hh ? empty(dtype, {wanted.M, wanted.P}) : empty(dtype, {0})};
}

// The products' arguments without dxw, dhw and the workspace of either way to form them.
template <class scalar_t>
Products<scalar_t> products_args(Workspace& space, const Machine& machine, const ProductsPlan& plan,
                                 const Sizes& sizes, const ProductSizes& wanted, const ProductInputs& in,
                                 const ProductsOutputs& out) {
  const auto& [dx, dweight_ih, dweight_hh] = out;
  Products<scalar_t> args{};
  args.sequence = {sizes.T, sizes.B, in.reverse, data<int64_t>(in.lengths)};
  args.M = wanted.M, args.I = wanted.I, args.P = wanted.P;
  args.packs = plan.packs, args.outer_products = plan.outer_products, args.KC = plan.KC,
  args.rows_at_once = plan.rows_at_once;
  if (wanted.dx) {
    args.weight_ih = data<scalar_t>(in.weight_ih), args.dx = mutable_data<scalar_t>(dx);
    if (plan.packs)
      args.packed_ih = space.take<scalar_t>(packing_of<scalar_t>(machine.isa).channels(wanted.I, wanted.M));
  }
  if (wanted.dweight_ih)
    args.x = strided_rows<scalar_t>(in.x), args.dweight_ih = mutable_data<scalar_t>(dweight_ih);
  if (wanted.dweight_hh) {
    args.y = strided_rows<scalar_t>(in.y), args.h0 = data<scalar_t>(in.h0);
    args.dweight_hh = mutable_data<scalar_t>(dweight_hh);
  }
  return args;
}

// Adds the operand rows of packed da.
template <class scalar_t>
void add_da_operand(Products<scalar_t>& args, Workspace& space, int threads) {
  args.da_operand = operand_buffer<scalar_t>(space, threads * args.rows_at_once, args.KC, 1);
}

// Adds the workspace of products after the recurrence.
template <class scalar_t>
void add_workspace(Products<scalar_t>& args, Workspace& space, const Machine& machine,
                   const ProductsPlan& plan, const ProductSizes& wanted) {
  using real = acc_t<scalar_t>;
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  const auto packed = [&](bool needed, int64_t N) { return needed ? packing.channels(N, plan.KC) : 0; };
  if (wanted.dx && plan.copies_dxw)
    args.dxw_operand = operand_buffer<scalar_t>(space, plan.threads * plan.rows_at_once, wanted.M, 1);
  if ((wanted.dweight_ih || wanted.dweight_hh) && !plan.outer_products) {
    const int64_t size = packed(wanted.dweight_ih, wanted.I) + packed(wanted.dweight_hh, wanted.P);
    for (int slot = 0; slot < 2; ++slot)
      args.packed_rows[slot] =
          slot == 0 || plan.double_buffer ? space.take<scalar_t>(size) : args.packed_rows[0];
    add_da_operand(args, space, plan.threads);
  }
  if constexpr (std::is_same_v<scalar_t, real>) {
    args.sums_ih = args.dweight_ih, args.sums_hh = args.dweight_hh;
  } else if (wanted.K > plan.KC) {
    args.sums_ih = space.take<real>(wanted.dweight_ih ? wanted.M * wanted.I : 0);
    args.sums_hh = space.take<real>(wanted.dweight_hh ? wanted.M * wanted.P : 0);
  }
  args.rows = space.take<ProductRow<scalar_t>>(plan.threads * plan.KC);
}

// Adds the workspace of products in blocks of `steps` steps.
template <class scalar_t>
void add_block_workspace(Products<scalar_t>& args, Workspace& space, const Machine& machine, int threads,
                         const Sizes& sizes, const ProductSizes& wanted, int64_t steps) {
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  const int64_t K = steps * sizes.B;
  args.block_x = space.take<scalar_t>(wanted.dweight_ih ? packing.channels(wanted.I, K) : 0);
  args.block_h = space.take<scalar_t>(wanted.dweight_hh ? packing.channels(wanted.P, K) : 0);
  const auto sums = [&](bool needed, int64_t N) {
    return space.take<acc_t<scalar_t>>(needed ? threads * packing.channels(N, wanted.M) : 0);
  };
  args.block_sums_ih = sums(wanted.dweight_ih, wanted.I);
  args.block_sums_hh = sums(wanted.dweight_hh, wanted.P);
  args.block_rows = space.take<ProductRow<scalar_t>>(K);
}

template <class scalar_t>
ProductsOutputs products_as(const Sizes& sizes, int64_t M, const Tensor& dxw, const Tensor& dhw,
                            const ProductInputs& in) {
  const Machine machine = this_machine();
  const ProductSizes wanted = in.sizes(sizes, M);
  const ProductsPlan plan = plan_products<scalar_t>(machine, wanted);
  ProductsOutputs out = empty_products<scalar_t>(sizes, wanted);
  Workspace space;
  Products<scalar_t> args = products_args<scalar_t>(space, machine, plan, sizes, wanted, in, out);
  add_workspace(args, space, machine, plan, wanted);
  args.dxw = data<scalar_t>(dxw), args.dhw = data<scalar_t>(dhw);
  run(plan.threads, [&](const Team& team) { engine().products(args, team); });
  return out;
}

}  // namespace lstm_fused
