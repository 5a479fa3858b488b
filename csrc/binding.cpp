// The operators of lstm_fused/autograd/operators.py: checks arguments, allocates, runs the engine as planned.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "operators.h"
#include "plan/plan.h"
#include "runtime/memory.h"
#include "schemas.h"
#include "tensors.h"

// Newer than torch 2.11, which the library is compiled for: null there.
extern "C" {
__attribute__((weak)) int32_t torch_tag_pt2_compliant_tag();
__attribute__((weak)) AOTITorchError torch_library_def_with_tags(TorchLibraryHandle, const char* schema,
                                                                 const int32_t* tags, int32_t count);
__attribute__((weak)) AOTITorchError torch_library_set_python_module(TorchLibraryHandle, const char* module,
                                                                     const char* context);
}

#ifdef __linux__
// Null where no OpenMP is loaded. <omp.h> is there only with a compiler's OpenMP turned on.
extern "C" __attribute__((weak)) int omp_in_parallel();
#endif

namespace lstm_fused {
namespace {

bool in_parallel_region() {
#ifdef __linux__
  return omp_in_parallel && omp_in_parallel();
#else
  return false;
#endif
}

int get_num_threads() {
  uint32_t threads;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

Machine this_machine() { return {engine().isa, l2_bytes(), in_parallel_region() ? 1 : get_num_threads()}; }

template <class scalar_t>
Packing<scalar_t> packing_of(const Isa& isa) {
  return {isa.vector_bytes / static_cast<int64_t>(sizeof(acc_t<scalar_t>))};
}

template <class scalar_t>
OperandBuffer<scalar_t> operand_buffer(Workspace& space, int64_t B, int64_t K, int64_t slots = 2) {
  OperandBuffer<scalar_t> result{nullptr, B, K, slots};
  result.data = space.take<scalar_t>(result.size());
  return result;
}

float widened(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
float widened(float value) { return value; }
double widened(double value) { return value; }

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
              const MaybeTensor& zoneout_c, std::optional<double> cell_clip, const Sizes& sizes, DType dtype)
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

ForwardOutputs forward(const Tensor& x, const MaybeTensor& weight_ih, const Tensor& weight_hh,
                       const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, const MaybeTensor& peephole,
                       const MaybeTensor& weight_hr, const Tensor& h0, const Tensor& c0,
                       const MaybeTensor& lengths, bool reverse, bool save, const MaybeTensor& gain_hh,
                       const MaybeTensor& h_mask, const MaybeTensor& zoneout_h, const MaybeTensor& zoneout_c,
                       std::optional<double> cell_clip) {
  const auto dtype = x.dtype();
  const Shape of_x = x.sizes(), of_h0 = h0.sizes(), of_c0 = c0.sizes();
  LSTM_FUSED_CHECK(of_x.size() == 3 && of_h0.size() == 2 && of_c0.size() == 2,
                   "x, h0 and c0 must have 3, 2 and 2 dimensions, got ", of_x.size(), ", ", of_h0.size(),
                   " and ", of_c0.size());
  const int64_t T = of_x[0], B = of_x[1], I = of_x[2], H = of_c0[1], P = of_h0[1];
  const Sizes sizes{T, B, I, H, P, weight_ih.has_value()};
  check_sizes(sizes, dtype);
  LSTM_FUSED_CHECK(weight_hr || P == H, "without weight_hr, h0 must be as wide as c0, ", H, ", got ", P);
  LSTM_FUSED_CHECK(weight_ih || I == 4 * H, "without weight_ih, x must be [T, B, 4H], got ", written(of_x));
  const VariantArgs variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, sizes, dtype);
  return by_dtype(dtype, "x", [&](auto element) {
    return forward_as<decltype(element)>(
        sizes, checked_rows(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {4 * H, I}, dtype),
        checked(weight_hh, "weight_hh", {4 * H, P}, dtype), checked(bias_ih, "bias_ih", {4 * H}, dtype),
        checked(bias_hh, "bias_hh", {4 * H}, dtype), checked(peephole, "peephole", {3, H}, dtype),
        checked(weight_hr, "weight_hr", {P, H}, dtype), checked(h0, "h0", {B, P}, dtype),
        checked(c0, "c0", {B, H}, dtype), checked_lengths(lengths, T, B), reverse, save, variant);
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

  const DType dtype = dtype_of<scalar_t>();
  Tensor dxw = empty(dtype, {T, B, 4 * H}), dh0 = empty(dtype, {B, P}), dc0 = empty(dtype, {B, H});
  Tensor dbias = empty(dtype, {4 * H}), dpeephole = empty(dtype, {3, H});
  Tensor dhw = hw ? empty(dtype, {T, B, 4 * H}) : empty(dtype, {0});

  Workspace space;
  Backward<scalar_t> args{};
  args.sequence = sequence_of(sizes, reverse, lengths);
  args.H = H, args.P = P;
  args.packs = plan.packs, args.streaming_stores = plan.streaming_stores, args.prefetches = plan.prefetches;
  args.min_rows_per_thread = plan.min_rows_per_thread;
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
  if (plan.packs) args.packed_hh = space.take<scalar_t>(packing.channels(P, 4 * H));
  args.packed_hr = space.take<scalar_t>(weight_hr ? packing.channels(H, P) : 0);
  args.da_operand = operand_buffer<scalar_t>(space, B, 4 * H);
  if (weight_hr) args.dh_operand = operand_buffer<scalar_t>(space, B, P);
  args.dc_state = space.take<acc_t<scalar_t>>(B * H);
  args.dh_zoneout = space.take<acc_t<scalar_t>>(variant.zoneout_h ? B * P : 0);
  args.width = (H + packing.lanes - 1) / packing.lanes * packing.lanes;
  args.sums = space.take<double>(plan.threads * 14 * args.width);
  args.rows = space.take<Row<scalar_t>>(plan.threads * B);
  run(plan.threads, [&](const Team& team) { engine().backward(args, team); });
  return {std::move(dxw),   std::move(dh0),       std::move(dc0),
          std::move(dbias), std::move(dpeephole), std::move(dhw)};
}

BackwardOutputs backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n,
                         const Tensor& c, const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                         const MaybeTensor& peephole, const MaybeTensor& weight_hr,
                         const MaybeTensor& lengths, bool reverse, const MaybeTensor& gain_hh,
                         const MaybeTensor& h_mask, const MaybeTensor& zoneout_h,
                         const MaybeTensor& zoneout_c, std::optional<double> cell_clip,
                         const MaybeTensor& hw) {
  const auto dtype = c.dtype();
  const Shape of_c = c.sizes(), of_weight_hh = weight_hh.sizes();
  LSTM_FUSED_CHECK(of_c.size() == 3 && of_weight_hh.size() == 2,
                   "c and weight_hh must have 3 and 2 dimensions, got ", of_c.size(), " and ",
                   of_weight_hh.size(), "; was the forward pass asked to save?");
  const int64_t T = of_c[0], B = of_c[1], H = of_c[2], P = of_weight_hh[1];
  const Sizes sizes{T, B, 0, H, P, false};
  check_sizes(sizes, dtype);
  LSTM_FUSED_CHECK(weight_hr || P == H, "without weight_hr, weight_hh must be [4H, H], got ",
                   written(of_weight_hh));
  LSTM_FUSED_CHECK(gain_hh.has_value() == hw.has_value(), "gain_hh and hw go together");
  const VariantArgs variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, sizes, dtype);
  return by_dtype(dtype, "c", [&](auto element) {
    using scalar_t = decltype(element);
    return backward_as<scalar_t>(
        sizes, checked_rows(dy, "dy", {T, B, P}, dtype), checked(dh_n, "dh_n", {B, P}, dtype),
        checked(dc_n, "dc_n", {B, H}, dtype), checked(c, "c", {T, B, H}, dtype),
        checked(gates, "gates", {T, B, 4 * H}, dtype), checked(c0, "c0", {B, H}, dtype),
        checked(weight_hh, "weight_hh", {4 * H, P}, dtype), checked(peephole, "peephole", {3, H}, dtype),
        checked(weight_hr, "weight_hr", {P, H}, dtype), checked_lengths(lengths, T, B), reverse, variant,
        checked(hw, "hw", {T, B, 4 * H}, dtype_of<acc_t<scalar_t>>()));
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

  const DType dtype = dtype_of<scalar_t>();
  Tensor dx = weight_ih ? empty(dtype, {T, B, I}) : empty(dtype, {0});
  Tensor dweight_ih = has_x ? empty(dtype, {M, I}) : empty(dtype, {0});
  Tensor dweight_hh = has_y ? empty(dtype, {M, P}) : empty(dtype, {0});

  Workspace space;
  Products<scalar_t> args{};
  args.sequence = {T, B, reverse, data<int64_t>(lengths)};
  args.M = M, args.I = I, args.P = P;
  args.packs = plan.packs, args.KC = plan.KC, args.rows_at_once = plan.rows_at_once;
  args.dxw = data<scalar_t>(dxw), args.dhw = data<scalar_t>(dhw);
  if (weight_ih) {
    args.weight_ih = data<scalar_t>(weight_ih), args.dx = mutable_data<scalar_t>(dx);
    if (plan.packs) args.packed_ih = space.take<scalar_t>(packing.channels(I, M));
    if (plan.copies_dxw)
      args.dxw_operand = operand_buffer<scalar_t>(space, plan.threads * plan.rows_at_once, M, 1);
  }
  if (has_x) args.x = strided_rows<scalar_t>(x), args.dweight_ih = mutable_data<scalar_t>(dweight_ih);
  if (has_y) {
    args.y = strided_rows<scalar_t>(y), args.h0 = data<scalar_t>(h0);
    args.dweight_hh = mutable_data<scalar_t>(dweight_hh);
  }
  if (has_x || has_y) {
    const int64_t size =
        (has_x ? packing.channels(I, plan.KC) : 0) + (has_y ? packing.channels(P, plan.KC) : 0);
    for (int slot = 0; slot < 2; ++slot)
      args.packed_rows[slot] =
          slot == 0 || plan.double_buffer ? space.take<scalar_t>(size) : args.packed_rows[0];
    args.da_operand = operand_buffer<scalar_t>(space, plan.threads * plan.rows_at_once, plan.KC, 1);
  }
  if constexpr (std::is_same_v<scalar_t, real>) {
    args.sums_ih = args.dweight_ih, args.sums_hh = args.dweight_hh;
  } else if (K > plan.KC) {
    args.sums_ih = space.take<real>(has_x ? M * I : 0), args.sums_hh = space.take<real>(has_y ? M * P : 0);
  }
  args.rows = space.take<ProductRow<scalar_t>>(plan.threads * plan.KC);
  run(plan.threads, [&](const Team& team) { engine().products(args, team); });
  return {std::move(dx), std::move(dweight_ih), std::move(dweight_hh)};
}

ProductsOutputs products(const Tensor& dxw, const MaybeTensor& dhw, const MaybeTensor& x,
                         const MaybeTensor& weight_ih, const MaybeTensor& y, const MaybeTensor& h0,
                         const MaybeTensor& lengths, bool reverse) {
  const auto dtype = dxw.dtype();
  const Shape of_dxw = dxw.sizes();
  LSTM_FUSED_CHECK(of_dxw.size() == 3, "dxw must have 3 dimensions, got ", of_dxw.size());
  const int64_t T = of_dxw[0], B = of_dxw[1], M = of_dxw[2];
  LSTM_FUSED_CHECK((!x || x->sizes().size() == 3) && (!weight_ih || weight_ih->sizes().size() == 2) &&
                       (!y || y->sizes().size() == 3),
                   "x, weight_ih and y must have 3, 2 and 3 dimensions");
  LSTM_FUSED_CHECK(y.has_value() == h0.has_value(), "y and h0 go together");
  const int64_t I = x ? x->sizes()[2] : weight_ih ? weight_ih->sizes()[1] : 0, P = y ? y->sizes()[2] : 0;
  const Sizes sizes{T, B, I, (M + 3) / 4, P};
  check_sizes(sizes, dtype);
  return by_dtype(dtype, "dxw", [&](auto element) {
    const Tensor da = checked(dxw, "dxw", {T, B, M}, dtype);
    return products_as<decltype(element)>(
        sizes, M, da, dhw ? checked(*dhw, "dhw", {T, B, M}, dtype) : da.borrowed(),
        checked_rows(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {M, I}, dtype),
        checked_rows(y, "y", {T, B, P}, dtype), checked(h0, "h0", {B, P}, dtype),
        checked_lengths(lengths, T, B), reverse);
  });
}

// The plan of a layer with weight_ih on any compiled instruction set, whether or not this machine runs it:
// the numbers that lstm_fused.backends.cpp.plan names. `call` is "forward", "saving forward", "backward" or
// "products".
std::vector<int64_t> plan_of(const std::string& isa, DType dtype, const std::vector<int64_t>& TBIHP,
                             const std::string& call, int64_t threads, int64_t l2_bytes) {
  const Isa* found = isa_of(isa);
  LSTM_FUSED_CHECK(found, "the C++ engine is not compiled for \"", isa, "\"");
  LSTM_FUSED_CHECK(TBIHP.size() == 5, "TBIHP must be five sizes, got ", written(TBIHP));
  const Machine machine{*found, l2_bytes, static_cast<int>(threads)};
  const Sizes sizes{TBIHP[0], TBIHP[1], TBIHP[2], TBIHP[3], TBIHP[4]};
  check_sizes(sizes, dtype);
  if (call == "products") {
    const ProductsPlan plan = by_dtype(dtype, "dtype", [&](auto element) {
      const ProductSizes all{sizes.T * sizes.B, 4 * sizes.H, sizes.I, sizes.P, true, true, true};
      return plan_products<decltype(element)>(machine, all);
    });
    return {plan.threads, plan.KC, plan.packs, plan.copies_dxw, plan.double_buffer};
  }
  const Plan plan = by_dtype(dtype, "dtype", [&](auto element) {
    using scalar_t = decltype(element);
    return call == "backward" ? plan_backward<scalar_t>(machine, sizes)
                              : plan_forward<scalar_t>(machine, sizes, call == "saving forward");
  });
  return {plan.threads,
          plan.min_rows_per_thread,
          plan.packs,
          plan.streaming_stores,
          plan.prefetches,
          plan.x_steps,
          static_cast<int64_t>(plan.step_us * 1000)};
}

std::string isa() { return engine().isa.name; }

// Defines the engine's operators, as m.def does, with their tag and with the Python module that has their
// fake implementations: where that is not imported, torch.compile and torch.export name it.
struct EngineOperators {
  TorchLibraryHandle library;

  EngineOperators() {
    TORCH_ERROR_CODE_CHECK(aoti_torch_library_init_fragment("lstm_fused", __FILE__, __LINE__, &library));
    if (torch_library_set_python_module)
      TORCH_ERROR_CODE_CHECK(
          torch_library_set_python_module(library, "lstm_fused.autograd.operators", "import lstm_fused"));
    for (const char* schema : {forward_schema, backward_schema, products_schema}) {
      if (torch_library_def_with_tags) {
        const int32_t tag = torch_tag_pt2_compliant_tag();
        TORCH_ERROR_CODE_CHECK(torch_library_def_with_tags(library, schema, &tag, 1));
      } else {
        TORCH_ERROR_CODE_CHECK(aoti_torch_library_def(library, schema));
      }
    }
  }
  ~EngineOperators() { aoti_torch_delete_library_object(library); }
} engine_operators;

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lstm_fused, m) {
  m.def("cpp_isa() -> str");
  m.def("cpp_isas() -> str[]");
  m.def("cpp_on_intel() -> bool");
  m.def("cpp_plan(str isa, ScalarType dtype, int[] TBIHP, str call, int threads, int l2_bytes) -> int[]");
  m.def("cpp_fill_new_memory(bool fill) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CompositeExplicitAutograd, m) {
  m.impl("cpp_isa", boxed<isa>);
  m.impl("cpp_isas", boxed<isas>);
  m.impl("cpp_on_intel", boxed<on_intel>);
  m.impl("cpp_plan", boxed<plan_of>);
  m.impl("cpp_fill_new_memory", boxed<fill_new_memory>);
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("cpp_forward", boxed<forward>);
  m.impl("cpp_backward", boxed<backward>);
  m.impl("cpp_products", boxed<products>);
}

}  // namespace lstm_fused
