// The operators of lstm_fused/autograd/operators.py: checks arguments, allocates, runs the engine as planned.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "dispatch.h"
#include "plan/plan.h"
#include "runtime/memory.h"
#include "tensors.h"

namespace lstm_fused {
namespace {

Machine this_machine() {
  return {engine().isa, l2_bytes(), at::in_parallel_region() ? 1 : at::get_num_threads()};
}

template <class scalar_t>
Packing<scalar_t> packing_of(const Isa& isa) {
  return {isa.vector_bytes / static_cast<int64_t>(sizeof(acc_t<scalar_t>))};
}

template <class scalar_t>
OperandBuffer<scalar_t> operand_buffer(Workspace& space, int64_t B, int64_t K, bool bf16x3 = false,
                                       int64_t slots = 2) {
  OperandBuffer<scalar_t> result{nullptr, B, K, slots, bf16x3};
  result.data = space.take<scalar_t>(result.size());
  return result;
}

// Without rows or channels there are no steps to run, however large T is.
Sequence sequence_of(const Sizes& sizes, bool reverse, const MaybeTensor& lengths) {
  const bool empty = sizes.B == 0 || sizes.H + sizes.P == 0;
  return {empty ? 0 : sizes.T, sizes.B, reverse, data<int64_t>(lengths)};
}

// The optional features' arguments, checked.
struct VariantArgs {
  MaybeTensor gain_hh, h_mask, zoneout_h, zoneout_c;
  std::optional<double> cell_clip;

  VariantArgs(const MaybeTensor& gain_hh, const MaybeTensor& h_mask, const MaybeTensor& zoneout_h,
              const MaybeTensor& zoneout_c, std::optional<double> cell_clip, const Sizes& sizes,
              at::ScalarType dtype)
      : gain_hh(checked(gain_hh, "gain_hh", {4 * sizes.H}, dtype)),
        h_mask(checked(h_mask, "h_mask", {sizes.B, sizes.P}, dtype)),
        zoneout_h(checked_rows(zoneout_h, "zoneout_h", {sizes.T, sizes.B, sizes.P}, dtype)),
        zoneout_c(checked_rows(zoneout_c, "zoneout_c", {sizes.T, sizes.B, sizes.H}, dtype)),
        cell_clip(cell_clip) {}

  template <class scalar_t>
  Variant<scalar_t> as() const {
    constexpr auto infinite = std::numeric_limits<acc_t<scalar_t>>::infinity();
    return {gain_hh || h_mask || zoneout_h || zoneout_c || cell_clip,
            data<scalar_t>(gain_hh),
            data<scalar_t>(h_mask),
            strided_rows<scalar_t>(zoneout_h),
            strided_rows<scalar_t>(zoneout_c),
            cell_clip ? static_cast<acc_t<scalar_t>>(*cell_clip) : infinite};
  }
};

using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class scalar_t>
ForwardOutputs forward_as(const Sizes& sizes, const Tensor& x, const MaybeTensor& weight_ih,
                          const Tensor& weight_hh, const MaybeTensor& bias, const MaybeTensor& peephole,
                          const MaybeTensor& weight_hr, const Tensor& h0, const Tensor& c0,
                          const MaybeTensor& lengths, bool reverse, bool save, const VariantArgs& variant) {
  const int64_t T = sizes.T, B = sizes.B, I = sizes.I, H = sizes.H, P = sizes.P;
  const Machine machine = this_machine();
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  const Plan plan = plan_forward<scalar_t>(machine, sizes, save);

  const Tensor y = empty(x, {T, B, P}), h_n = empty(x, {B, P}), c_n = empty(x, {B, H});
  const Tensor c = save ? empty(x, {T, B, H}) : x.new_empty({0});
  const Tensor gates = save ? empty(x, {T, B, 4 * H}) : x.new_empty({0});

  Workspace space;
  Forward<scalar_t> args{};
  args.sequence = sequence_of(sizes, reverse, lengths);
  args.I = I, args.H = H, args.P = P;
  args.x_steps = plan.x_steps, args.streaming_stores = plan.streaming_stores;
  args.min_rows_per_thread = plan.min_rows_per_thread;
  args.x = strided_rows<scalar_t>(x);
  args.weight_ih = data<scalar_t>(weight_ih), args.weight_hh = data<scalar_t>(weight_hh);
  args.bias = data<scalar_t>(bias), args.peephole = data<scalar_t>(peephole);
  args.weight_hr = data<scalar_t>(weight_hr);
  args.h0 = data<scalar_t>(h0), args.c0 = data<scalar_t>(c0);
  args.y = mutable_data<scalar_t>(y), args.h_n = mutable_data<scalar_t>(h_n),
  args.c_n = mutable_data<scalar_t>(c_n);
  if (save) args.c = mutable_data<scalar_t>(c), args.gates = mutable_data<scalar_t>(gates);
  args.variant = variant.as<scalar_t>();
  if (weight_ih) {
    if (plan.packs) args.packed_ih = space.take<scalar_t>(packing.gates(H, I, plan.x_bf16x3));
    const int64_t slots = std::max<int64_t>(plan.x_steps, 2);
    args.x_operand = operand_buffer<scalar_t>(space, B, I, plan.x_bf16x3, slots);
  }
  if (plan.packs) args.packed_hh = space.take<scalar_t>(packing.gates(H, P, plan.h_bf16x3));
  args.packed_hr = space.take<scalar_t>(weight_hr ? packing.channels(P, H) : 0);
  args.xw = space.take<acc_t<scalar_t>>(plan.x_steps > 1 ? plan.x_steps * B * 4 * H : 0);
  args.h_operand = operand_buffer<scalar_t>(space, B, P, plan.h_bf16x3);
  if (weight_hr) args.m_operand = operand_buffer<scalar_t>(space, B, H);
  args.c_state = space.take<acc_t<scalar_t>>(B * H);
  args.hw = space.take<acc_t<scalar_t>>(variant.gain_hh ? B * 4 * H : 0);
  args.rows = space.take<Row<scalar_t>>(plan.threads * B);
  run(plan.threads, [&](const Team& team) { engine().forward(args, team); });
  return {y, h_n, c_n, c, gates};
}

ForwardOutputs forward(const Tensor& x, const MaybeTensor& weight_ih, const Tensor& weight_hh,
                       const MaybeTensor& bias, const MaybeTensor& peephole, const MaybeTensor& weight_hr,
                       const Tensor& h0, const Tensor& c0, const MaybeTensor& lengths, bool reverse,
                       bool save, const MaybeTensor& gain_hh, const MaybeTensor& h_mask,
                       const MaybeTensor& zoneout_h, const MaybeTensor& zoneout_c,
                       std::optional<double> cell_clip) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(x.dim() == 3 && h0.dim() == 2 && c0.dim() == 2,
                    "lstm_fused: x, h0 and c0 must have 3, 2 and 2 dimensions, got ", x.dim(), ", ", h0.dim(),
                    " and ", c0.dim());
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = c0.size(1), P = h0.size(1);
  const Sizes sizes{T, B, I, H, P, weight_ih.has_value(), gain_hh.has_value()};
  check_sizes(sizes, dtype);
  TORCH_CHECK_VALUE(weight_hr || P == H, "lstm_fused: without weight_hr, h0 must be as wide as c0, ", H,
                    ", got ", P);
  TORCH_CHECK_VALUE(weight_ih || I == 4 * H, "lstm_fused: without weight_ih, x must be [T, B, 4H], got ",
                    x.sizes());
  const VariantArgs variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, sizes, dtype);
  return by_dtype(dtype, "x", [&](auto element) {
    return forward_as<decltype(element)>(
        sizes, checked_rows(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {4 * H, I}, dtype),
        checked(weight_hh, "weight_hh", {4 * H, P}, dtype), checked(bias, "bias", {4 * H}, dtype),
        checked(peephole, "peephole", {3 * H}, dtype), checked(weight_hr, "weight_hr", {P, H}, dtype),
        checked(h0, "h0", {B, P}, dtype), checked(c0, "c0", {B, H}, dtype), checked_lengths(lengths, T, B),
        reverse, save, variant);
  });
}

using BackwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class scalar_t>
BackwardOutputs backward_as(const Sizes& sizes, const MaybeTensor& dy, const MaybeTensor& dh_n,
                            const MaybeTensor& dc_n, const Tensor& c, const Tensor& gates, const Tensor& c0,
                            const Tensor& weight_hh, const MaybeTensor& peephole,
                            const MaybeTensor& weight_hr, const MaybeTensor& lengths, bool reverse,
                            const VariantArgs& variant, const MaybeTensor& hw) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P;
  const Machine machine = this_machine();
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  const Plan plan = plan_backward<scalar_t>(machine, sizes);

  const Tensor dxw = empty(c, {T, B, 4 * H}), dh0 = empty(c, {B, P}), dc0 = empty(c, {B, H});
  const Tensor dbias = c.new_empty({4 * H}), dpeephole = c.new_empty({3 * H});
  const Tensor dhw = hw ? empty(c, {T, B, 4 * H}) : c.new_empty({0});

  Workspace space;
  Backward<scalar_t> args{};
  args.sequence = sequence_of(sizes, reverse, lengths);
  args.H = H, args.P = P;
  args.streaming_stores = plan.streaming_stores, args.min_rows_per_thread = plan.min_rows_per_thread;
  args.dy = strided_rows<scalar_t>(dy);
  args.dh_n = data<scalar_t>(dh_n), args.dc_n = data<scalar_t>(dc_n);
  args.c = data<scalar_t>(c), args.gates = data<scalar_t>(gates), args.c0 = data<scalar_t>(c0);
  args.weight_hh = data<scalar_t>(weight_hh), args.peephole = data<scalar_t>(peephole);
  args.weight_hr = data<scalar_t>(weight_hr);
  args.variant = variant.as<scalar_t>();
  if (hw) args.hw = data<acc_t<scalar_t>>(hw), args.dhw = mutable_data<scalar_t>(dhw);
  args.dxw = mutable_data<scalar_t>(dxw);
  args.dh0 = mutable_data<scalar_t>(dh0), args.dc0 = mutable_data<scalar_t>(dc0);
  args.dbias = mutable_data<scalar_t>(dbias), args.dpeephole = mutable_data<scalar_t>(dpeephole);
  if (plan.packs) args.packed_hh = space.take<scalar_t>(packing.channels(P, 4 * H, plan.da_bf16x3));
  args.packed_hr = space.take<scalar_t>(weight_hr ? packing.channels(H, P) : 0);
  args.da_operand = operand_buffer<scalar_t>(space, B, 4 * H, plan.da_bf16x3);
  if (weight_hr) args.dh_operand = operand_buffer<scalar_t>(space, B, P);
  args.dc_state = space.take<acc_t<scalar_t>>(B * H);
  args.dh_zoneout = space.take<acc_t<scalar_t>>(variant.zoneout_h ? B * P : 0);
  args.width = (H + packing.lanes - 1) / packing.lanes * packing.lanes;
  args.sums = space.take<double>(plan.threads * 14 * args.width);
  args.rows = space.take<Row<scalar_t>>(plan.threads * B);
  run(plan.threads, [&](const Team& team) { engine().backward(args, team); });
  return {dxw, dh0, dc0, dbias, dpeephole, dhw};
}

BackwardOutputs backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n,
                         const Tensor& c, const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                         const MaybeTensor& peephole, const MaybeTensor& weight_hr,
                         const MaybeTensor& lengths, bool reverse, const MaybeTensor& gain_hh,
                         const MaybeTensor& h_mask, const MaybeTensor& zoneout_h,
                         const MaybeTensor& zoneout_c, std::optional<double> cell_clip,
                         const MaybeTensor& hw) {
  const auto dtype = c.scalar_type();
  TORCH_CHECK_VALUE(c.dim() == 3 && weight_hh.dim() == 2,
                    "lstm_fused: c and weight_hh must have 3 and 2 dimensions, got ", c.dim(), " and ",
                    weight_hh.dim(), "; was the forward pass asked to save?");
  const int64_t T = c.size(0), B = c.size(1), H = c.size(2), P = weight_hh.size(1);
  const Sizes sizes{T, B, 0, H, P, false, gain_hh.has_value()};
  check_sizes(sizes, dtype);
  TORCH_CHECK_VALUE(weight_hr || P == H, "lstm_fused: without weight_hr, weight_hh must be [4H, H], got ",
                    weight_hh.sizes());
  TORCH_CHECK_VALUE(gain_hh.has_value() == hw.has_value(), "lstm_fused: gain_hh and hw go together");
  const VariantArgs variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, sizes, dtype);
  return by_dtype(dtype, "c", [&](auto element) {
    using scalar_t = decltype(element);
    return backward_as<scalar_t>(
        sizes, checked_rows(dy, "dy", {T, B, P}, dtype), checked(dh_n, "dh_n", {B, P}, dtype),
        checked(dc_n, "dc_n", {B, H}, dtype), checked(c, "c", {T, B, H}, dtype),
        checked(gates, "gates", {T, B, 4 * H}, dtype), checked(c0, "c0", {B, H}, dtype),
        checked(weight_hh, "weight_hh", {4 * H, P}, dtype), checked(peephole, "peephole", {3 * H}, dtype),
        checked(weight_hr, "weight_hr", {P, H}, dtype), checked_lengths(lengths, T, B), reverse, variant,
        checked(hw, "hw", {T, B, 4 * H}, dtype_of<acc_t<scalar_t>>));
  });
}

using ProductsOutputs = std::tuple<Tensor, Tensor, Tensor>;

template <class scalar_t>
ProductsOutputs products_as(const Sizes& sizes, int64_t M, const Tensor& dxw, const Tensor& dhw,
                            const MaybeTensor& x, const MaybeTensor& weight_ih, const MaybeTensor& y,
                            const MaybeTensor& h0, const MaybeTensor& lengths, bool reverse) {
  using real = acc_t<scalar_t>;
  const int64_t T = sizes.T, B = sizes.B, I = sizes.I, P = sizes.P;
  const Machine machine = this_machine();
  const Packing<scalar_t> packing = packing_of<scalar_t>(machine.isa);
  const int64_t K =
      lengths ? std::accumulate(data<int64_t>(*lengths), data<int64_t>(*lengths) + B, int64_t{0}) : T * B;
  const bool has_x = x.has_value(), has_y = y.has_value();
  const ProductsPlan plan =
      plan_products<scalar_t>(machine, {K, M, I, P, weight_ih.has_value(), has_x, has_y});

  const Tensor dx = weight_ih ? empty(dxw, {T, B, I}) : dxw.new_empty({0});
  const Tensor dweight_ih = has_x ? empty(dxw, {M, I}) : dxw.new_empty({0});
  const Tensor dweight_hh = has_y ? empty(dxw, {M, P}) : dxw.new_empty({0});

  Workspace space;
  Products<scalar_t> args{};
  args.sequence = {T, B, reverse, data<int64_t>(lengths)};
  args.M = M, args.I = I, args.P = P;
  args.KC = plan.KC, args.dx_rows = plan.dx_rows, args.dweight_rows = plan.dweight_rows;
  args.dxw = data<scalar_t>(dxw), args.dhw = data<scalar_t>(dhw);
  if (weight_ih) {
    args.weight_ih = data<scalar_t>(weight_ih), args.dx = mutable_data<scalar_t>(dx);
    if (plan.packs) args.packed_ih = space.take<scalar_t>(packing.channels(I, M, plan.dx_bf16x3));
    args.dxw_operand = operand_buffer<scalar_t>(space, plan.threads * plan.dx_rows, M, plan.dx_bf16x3, 1);
  }
  if (has_x) args.x = strided_rows<scalar_t>(x), args.dweight_ih = mutable_data<scalar_t>(dweight_ih);
  if (has_y) {
    args.y = strided_rows<scalar_t>(y), args.h0 = data<scalar_t>(h0);
    args.dweight_hh = mutable_data<scalar_t>(dweight_hh);
  }
  if (has_x || has_y) {
    args.packed_rows = space.take<scalar_t>((has_x ? packing.channels(I, plan.KC, plan.dweight_bf16x3) : 0) +
                                            (has_y ? packing.channels(P, plan.KC, plan.dweight_bf16x3) : 0));
    args.da_operand =
        operand_buffer<scalar_t>(space, plan.threads * plan.dweight_rows, plan.KC, plan.dweight_bf16x3, 1);
  }
  if constexpr (std::is_same_v<scalar_t, real>) {
    args.sums_ih = args.dweight_ih, args.sums_hh = args.dweight_hh;
  } else if (K > plan.KC) {
    args.sums_ih = space.take<real>(has_x ? M * I : 0), args.sums_hh = space.take<real>(has_y ? M * P : 0);
  }
  args.rows = space.take<ProductRow<scalar_t>>(plan.threads * plan.KC);
  run(plan.threads, [&](const Team& team) { engine().products(args, team); });
  return {dx, dweight_ih, dweight_hh};
}

ProductsOutputs products(const Tensor& dxw, const MaybeTensor& dhw, const MaybeTensor& x,
                         const MaybeTensor& weight_ih, const MaybeTensor& y, const MaybeTensor& h0,
                         const MaybeTensor& lengths, bool reverse) {
  const auto dtype = dxw.scalar_type();
  TORCH_CHECK_VALUE(dxw.dim() == 3, "lstm_fused: dxw must have 3 dimensions, got ", dxw.dim());
  TORCH_CHECK_VALUE((!x || x->dim() == 3) && (!weight_ih || weight_ih->dim() == 2) && (!y || y->dim() == 3),
                    "lstm_fused: x, weight_ih and y must have 3, 2 and 3 dimensions");
  TORCH_CHECK_VALUE(y.has_value() == h0.has_value(), "lstm_fused: y and h0 go together");
  const int64_t T = dxw.size(0), B = dxw.size(1), M = dxw.size(2);
  const int64_t I = x ? x->size(2) : weight_ih ? weight_ih->size(1) : 0, P = y ? y->size(2) : 0;
  const Sizes sizes{T, B, I, (M + 3) / 4, P};
  check_sizes(sizes, dtype);
  return by_dtype(dtype, "dxw", [&](auto element) {
    const Tensor da = checked(dxw, "dxw", {T, B, M}, dtype);
    return products_as<decltype(element)>(
        sizes, M, da, dhw ? checked(*dhw, "dhw", {T, B, M}, dtype) : da,
        checked_rows(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {M, I}, dtype),
        checked_rows(y, "y", {T, B, P}, dtype), checked(h0, "h0", {B, P}, dtype),
        checked_lengths(lengths, T, B), reverse);
  });
}

// The plan of a layer with weight_ih on any compiled instruction set, whether or not this machine runs it.
// `call` is "forward", "saving forward", "backward" or "products".
c10::Dict<std::string, int64_t> plan_of(const std::string& isa, at::ScalarType dtype, at::IntArrayRef TBIHP,
                                        const std::string& call, int64_t threads, int64_t l2_bytes) {
  const Isa* found = isa_of(isa);
  TORCH_CHECK_VALUE(found, "lstm_fused: the C++ engine is not compiled for \"", isa, "\"");
  TORCH_CHECK_VALUE(TBIHP.size() == 5, "lstm_fused: TBIHP must be five sizes, got ", TBIHP);
  const Machine machine{*found, l2_bytes, static_cast<int>(threads)};
  const Sizes sizes{TBIHP[0], TBIHP[1], TBIHP[2], TBIHP[3], TBIHP[4]};
  check_sizes(sizes, dtype);
  c10::Dict<std::string, int64_t> result;
  if (call == "products") {
    const ProductsPlan plan = by_dtype(dtype, "dtype", [&](auto element) {
      const ProductSizes all{sizes.T * sizes.B, 4 * sizes.H, sizes.I, sizes.P, true, true, true};
      return plan_products<decltype(element)>(machine, all);
    });
    result.insert("threads", plan.threads);
    result.insert("KC", plan.KC);
    result.insert("packs", plan.packs);
    result.insert("dx_bf16x3", plan.dx_bf16x3);
    result.insert("dweight_bf16x3", plan.dweight_bf16x3);
    return result;
  }
  const Plan plan = by_dtype(dtype, "dtype", [&](auto element) {
    using scalar_t = decltype(element);
    return call == "backward" ? plan_backward<scalar_t>(machine, sizes)
                              : plan_forward<scalar_t>(machine, sizes, call == "saving forward");
  });
  result.insert("threads", plan.threads);
  result.insert("min_rows_per_thread", plan.min_rows_per_thread);
  result.insert("packs", plan.packs);
  result.insert("streaming_stores", plan.streaming_stores);
  result.insert("x_steps", plan.x_steps);
  result.insert("x_bf16x3", plan.x_bf16x3);
  result.insert("h_bf16x3", plan.h_bf16x3);
  result.insert("da_bf16x3", plan.da_bf16x3);
  result.insert("step_ns", static_cast<int64_t>(plan.step_us * 1000));
  return result;
}

std::string isa() { return engine().isa.name; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(lstm_fused, m) {
  m.def("cpp_isa() -> str", isa);
  m.def("cpp_isas() -> str[]", isas);
  m.def("cpp_on_intel() -> bool", on_intel);
  m.def(
      "cpp_plan(str isa, ScalarType dtype, int[] TBIHP, str call, int threads, int l2_bytes)"
      " -> Dict(str, int)",
      plan_of);
}

TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("cpp_forward", forward);
  m.impl("cpp_backward", backward);
  m.impl("cpp_products", products);
}

}  // namespace lstm_fused
