// Calls the backward pass and its products at once, without a tensor for dxw.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "calls/backward.h"
#include "calls/products.h"

namespace lstm_fused {

using GradientsOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class scalar_t>
GradientsOutputs gradients_as(const Sizes& sizes, const BackwardInputs& in, const ProductInputs& factors) {
  const Machine machine = this_machine();
  const ProductSizes wanted = factors.sizes(sizes, 4 * sizes.H);
  const auto [plan, products_plan, steps, keeps_da] = plan_gradients<scalar_t>(machine, sizes, wanted);
  const int64_t all_steps = std::max<int64_t>(sequence_of(sizes, in.reverse, in.lengths).T, 1);
  const int64_t slots = steps > 0 ? steps : keeps_da ? all_steps : 2;
  StateGradients out(sizes, dtype_of<scalar_t>());
  ProductsOutputs formed = empty_products<scalar_t>(sizes, wanted);
  Workspace space;
  Backward<scalar_t> args = backward_args<scalar_t>(space, machine, plan, sizes, in, out, slots);
  Products<scalar_t> products =
      products_args<scalar_t>(space, machine, products_plan, sizes, wanted, factors, formed);
  if (steps > 0) {
    add_block_workspace(products, space, machine, plan.threads, sizes, wanted, steps);
    if (in.lengths) add_da_operand(products, space, plan.threads);
    args.products = &products;
  } else {
    add_workspace(products, space, machine, products_plan, wanted);
    if (keeps_da)
      products.da = args.da_operand;
    else
      products.dxw = products.dhw = args.dxw =
          space.take<scalar_t>(std::max<int64_t>(sizes.T * sizes.B * wanted.M, 1));  // never null
  }
  run(plan.threads, [&](const Team& team) { engine().backward(args, team); });
  if (steps == 0) run(products_plan.threads, [&](const Team& team) { engine().products(products, team); });
  auto& [dx, dweight_ih, dweight_hh] = formed;
  return {std::move(dx),      std::move(dweight_ih), std::move(dweight_hh),   std::move(out.dh0),
          std::move(out.dc0), std::move(out.dbias),  std::move(out.dpeephole)};
}

}  // namespace lstm_fused
