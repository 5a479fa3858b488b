// Calls the engine's forward pass on checked arguments: plans, allocates results and workspace, starts
// threads.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <tuple>
#include <utility>

#include "calls/common.h"

namespace lstm_fused {

inline float widened(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float widened(float value) { return value; }
inline double widened(double value) { return value; }

// Null if both are.
template <class scalar_t>
const acc_t<scalar_t>* sum_of_biases(Workspace& space, const scalar_t* bias_ih, const scalar_t* bias_hh,
                                     int64_t count) {
  if (!bias_ih && !bias_hh) return nullptr;
  acc_t<scalar_t>* sum = space.take<acc_t<scalar_t>>(count);
  for (int64_t n = 0; n < count; ++n)
    sum[n] = (bias_ih ? widened(bias_ih[n]) : 0) + (bias_hh ? widened(bias_hh[n]) : 0);
  return sum;
}

using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class scalar_t>
ForwardOutputs forward_as(const Sizes& sizes, const Tensor& x, const MaybeTensor& weight_ih,
                          const Tensor& weight_hh, const MaybeTensor& bias_ih, const MaybeTensor& bias_hh,
                          const MaybeTensor& peephole, const MaybeTensor& weight_hr, const Tensor& h0,
                          const Tensor& c0, const MaybeTensor& lengths, bool reverse, bool save,
                          const VariantArgs& variant) {
  const int64_t T = sizes.T, B = sizes.B, I = sizes.I, H = sizes.H, P = sizes.P;
  const Machine machine = this_machine();
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  const Plan plan = plan_forward<scalar_t>(machine, sizes, save);

  const DType dtype = dtype_of<scalar_t>();
  Tensor y = empty(dtype, {T, B, P}), h_n = empty(dtype, {B, P}), c_n = empty(dtype, {B, H});
  Tensor c = save ? empty(dtype, {T, B, H}) : empty(dtype, {0});
  Tensor gates = save ? empty(dtype, {T, B, 4 * H}) : empty(dtype, {0});

  Workspace space;
  Forward<scalar_t> args{};
  args.sequence = sequence_of(sizes, reverse, lengths);
  args.I = I, args.H = H, args.P = P;
  args.x_steps = plan.x_steps, args.packs = plan.packs, args.streaming_stores = plan.streaming_stores,
  args.prefetches = plan.prefetches;
  args.min_rows_per_thread = plan.min_rows_per_thread;
  args.x = strided_rows<scalar_t>(x);
  args.weight_ih = data<scalar_t>(weight_ih), args.weight_hh = data<scalar_t>(weight_hh);
  args.bias = sum_of_biases(space, data<scalar_t>(bias_ih), data<scalar_t>(bias_hh), 4 * H);
  args.peephole = data<scalar_t>(peephole);
  args.weight_hr = data<scalar_t>(weight_hr);
  args.h0 = data<scalar_t>(h0), args.c0 = data<scalar_t>(c0);
  args.y = mutable_data<scalar_t>(y), args.h_n = mutable_data<scalar_t>(h_n),
  args.c_n = mutable_data<scalar_t>(c_n);
  if (save) args.c = mutable_data<scalar_t>(c), args.gates = mutable_data<scalar_t>(gates);
  args.variant = variant.as<scalar_t>();
  if (weight_ih) {
    if (plan.packs) args.packed_ih = space.take<scalar_t>(packing.gates(H, I));
    const int64_t slots = std::max<int64_t>(plan.x_steps, 2);
    args.x_operand = operand_buffer<scalar_t>(space, B, I, slots);
  }
  if (plan.packs) args.packed_hh = space.take<scalar_t>(packing.gates(H, P));
  args.packed_hr = space.take<scalar_t>(weight_hr ? packing.channels(P, H) : 0);
  args.xw = space.take<acc_t<scalar_t>>(plan.x_steps > 1 ? plan.x_steps * B * 4 * H : 0);
  args.h_operand = operand_buffer<scalar_t>(space, B, P);
  if (weight_hr) args.m_operand = operand_buffer<scalar_t>(space, B, H);
  args.c_state = space.take<acc_t<scalar_t>>(B * H);
  args.hw = space.take<acc_t<scalar_t>>(variant.gain_hh ? B * 4 * H : 0);
  args.rows = space.take<Row<scalar_t>>(plan.threads * B);
  run(plan.threads, [&](const Team& team) { engine().forward(args, team); });
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(c), std::move(gates)};
}

}  // namespace lstm_fused
