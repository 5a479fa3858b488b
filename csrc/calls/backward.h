// Calls the engine's backward pass on checked arguments: plans, allocates results and workspace, starts
// threads.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "calls/common.h"

namespace lstm_fused {

// The arguments of a backward pass.
struct BackwardInputs {
  MaybeTensor dy, dh_n, dc_n;
  Tensor c, gates, c0, weight_hh;
  MaybeTensor peephole, weight_hr, lengths;
  bool reverse;
  const VariantArgs& variant;
  MaybeTensor hw;
};

// The results of a backward pass but dxw and dhw.
struct StateGradients {
  Tensor dh0, dc0, dbias, dpeephole;

  StateGradients(const Sizes& sizes, DType dtype)
      : dh0(empty(dtype, {sizes.B, sizes.P})),
        dc0(empty(dtype, {sizes.B, sizes.H})),
        dbias(empty(dtype, {4 * sizes.H})),
        dpeephole(empty(dtype, {3, sizes.H})) {}
};

// The backward pass's arguments without dxw and dhw, with `slots` of da.
template <class scalar_t>
Backward<scalar_t> backward_args(Workspace& space, const Machine& machine, const Plan& plan,
                                 const Sizes& sizes, const BackwardInputs& in, const StateGradients& out,
                                 int64_t slots) {
  const int64_t B = sizes.B, H = sizes.H, P = sizes.P;
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  Backward<scalar_t> args{};
  args.sequence = sequence_of(sizes, in.reverse, in.lengths);
  args.H = H, args.P = P;
  args.packs = plan.packs, args.streaming_stores = plan.streaming_stores, args.prefetches = plan.prefetches;
  args.min_rows_per_thread = plan.min_rows_per_thread;
  args.dy = strided_rows<scalar_t>(in.dy);
  args.dh_n = data<scalar_t>(in.dh_n), args.dc_n = data<scalar_t>(in.dc_n);
  args.c = data<scalar_t>(in.c), args.gates = data<scalar_t>(in.gates), args.c0 = data<scalar_t>(in.c0);
  args.weight_hh = data<scalar_t>(in.weight_hh), args.peephole = data<scalar_t>(in.peephole);
  args.weight_hr = data<scalar_t>(in.weight_hr);
  args.variant = in.variant.as<scalar_t>();
  args.hw = data<acc_t<scalar_t>>(in.hw);
  args.dh0 = mutable_data<scalar_t>(out.dh0), args.dc0 = mutable_data<scalar_t>(out.dc0);
  args.dbias = mutable_data<scalar_t>(out.dbias), args.dpeephole = mutable_data<scalar_t>(out.dpeephole);
  if (plan.packs) args.packed_hh = space.take<scalar_t>(packing.channels(P, 4 * H));
  args.packed_hr = space.take<scalar_t>(in.weight_hr ? packing.channels(H, P) : 0);
  args.da_operand = operand_buffer<scalar_t>(space, B, 4 * H, slots);
  if (in.weight_hr) args.dh_operand = operand_buffer<scalar_t>(space, B, P);
  args.dc_state = space.take<acc_t<scalar_t>>(B * H);
  args.dh_zoneout = space.take<acc_t<scalar_t>>(in.variant.zoneout_h ? B * P : 0);
  args.width = (H + packing.lanes - 1) / packing.lanes * packing.lanes;
  args.sums = space.take<double>(plan.threads * 14 * args.width);
  args.rows = space.take<Row<scalar_t>>(plan.threads * B);
  return args;
}

using BackwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class scalar_t>
BackwardOutputs backward_as(const Sizes& sizes, const BackwardInputs& in) {
  const Machine machine = this_machine();
  const Plan plan = plan_backward<scalar_t>(machine, sizes);
  const DType dtype = dtype_of<scalar_t>();
  StateGradients out(sizes, dtype);
  Tensor dxw = empty(dtype, {sizes.T, sizes.B, 4 * sizes.H});
  Tensor dhw = in.hw ? empty(dtype, {sizes.T, sizes.B, 4 * sizes.H}) : empty(dtype, {0});
  Workspace space;
  Backward<scalar_t> args = backward_args<scalar_t>(space, machine, plan, sizes, in, out, 2);
  args.dxw = mutable_data<scalar_t>(dxw);
  if (in.hw) args.dhw = mutable_data<scalar_t>(dhw);
  run(plan.threads, [&](const Team& team) { engine().backward(args, team); });
  return {std::move(dxw),       std::move(out.dh0),       std::move(out.dc0),
          std::move(out.dbias), std::move(out.dpeephole), std::move(dhw)};
}

}  // namespace lstm_fused
