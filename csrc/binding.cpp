// The operators of lstm_fused/autograd/operators.py: checks their arguments and calls the engine (calls/).
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calls/backward.h"
#include "calls/forward.h"
#include "calls/gradients.h"
#include "calls/products.h"
#include "operators.h"
#include "schemas.h"

// Newer than torch 2.11, which the library is compiled for: null there.
extern "C" {
__attribute__((weak)) int32_t torch_tag_pt2_compliant_tag();
__attribute__((weak)) AOTITorchError torch_library_def_with_tags(TorchLibraryHandle, const char* schema,
                                                                 const int32_t* tags, int32_t count);
__attribute__((weak)) AOTITorchError torch_library_set_python_module(TorchLibraryHandle, const char* module,
                                                                     const char* context);
}

namespace lstm_fused {
namespace {

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

// The backward pass's arguments, checked.
BackwardInputs checked_backward(const Sizes& sizes, DType dtype, DType wide, const MaybeTensor& dy,
                                const MaybeTensor& dh_n, const MaybeTensor& dc_n, const Tensor& c,
                                const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                                const MaybeTensor& peephole, const MaybeTensor& weight_hr,
                                const MaybeTensor& lengths, bool reverse, const VariantArgs& variant,
                                const MaybeTensor& hw) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P;
  LSTM_FUSED_CHECK(weight_hr || P == H, "without weight_hr, weight_hh must be [4H, H], got ",
                   written(weight_hh.sizes()));
  LSTM_FUSED_CHECK(variant.gain_hh.has_value() == hw.has_value(), "gain_hh and hw go together");
  return {checked_rows(dy, "dy", {T, B, P}, dtype),
          checked(dh_n, "dh_n", {B, P}, dtype),
          checked(dc_n, "dc_n", {B, H}, dtype),
          checked(c, "c", {T, B, H}, dtype),
          checked(gates, "gates", {T, B, 4 * H}, dtype),
          checked(c0, "c0", {B, H}, dtype),
          checked(weight_hh, "weight_hh", {4 * H, P}, dtype),
          checked(peephole, "peephole", {3, H}, dtype),
          checked(weight_hr, "weight_hr", {P, H}, dtype),
          checked_lengths(lengths, T, B),
          reverse,
          variant,
          checked(hw, "hw", {T, B, 4 * H}, wide)};
}

// The sizes that a backward pass is given, I apart.
Sizes sizes_of(const Tensor& c, const Tensor& weight_hh, int64_t I) {
  const Shape of_c = c.sizes(), of_weight_hh = weight_hh.sizes();
  LSTM_FUSED_CHECK(of_c.size() == 3 && of_weight_hh.size() == 2,
                   "c and weight_hh must have 3 and 2 dimensions, got ", of_c.size(), " and ",
                   of_weight_hh.size(), "; was the forward pass asked to save?");
  const Sizes sizes{of_c[0], of_c[1], I, of_c[2], of_weight_hh[1], false};
  check_sizes(sizes, c.dtype());
  return sizes;
}

BackwardOutputs backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n,
                         const Tensor& c, const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                         const MaybeTensor& peephole, const MaybeTensor& weight_hr,
                         const MaybeTensor& lengths, bool reverse, const MaybeTensor& gain_hh,
                         const MaybeTensor& h_mask, const MaybeTensor& zoneout_h,
                         const MaybeTensor& zoneout_c, std::optional<double> cell_clip,
                         const MaybeTensor& hw) {
  const auto dtype = c.dtype();
  const Sizes sizes = sizes_of(c, weight_hh, 0);
  const VariantArgs variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, sizes, dtype);
  return by_dtype(dtype, "c", [&](auto element) {
    using scalar_t = decltype(element);
    return backward_as<scalar_t>(
        sizes, checked_backward(sizes, dtype, dtype_of<acc_t<scalar_t>>(), dy, dh_n, dc_n, c, gates, c0,
                                weight_hh, peephole, weight_hr, lengths, reverse, variant, hw));
  });
}

// The factors of the products, checked; M is the number of columns of dxw.
ProductInputs checked_factors(const Sizes& sizes, int64_t M, DType dtype, const MaybeTensor& x,
                              const MaybeTensor& weight_ih, const MaybeTensor& y, const MaybeTensor& h0,
                              const MaybeTensor& lengths, bool reverse) {
  const int64_t T = sizes.T, B = sizes.B, I = sizes.I, P = sizes.P;
  LSTM_FUSED_CHECK(y.has_value() == h0.has_value(), "y and h0 go together");
  return {checked_rows(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {M, I}, dtype),
          checked_rows(y, "y", {T, B, P}, dtype), checked(h0, "h0", {B, P}, dtype),
          checked_lengths(lengths, T, B),         reverse};
}

// I of the factors of the products, 0 if they do not have it.
int64_t inputs_of(const MaybeTensor& x, const MaybeTensor& weight_ih, const MaybeTensor& y) {
  LSTM_FUSED_CHECK((!x || x->sizes().size() == 3) && (!weight_ih || weight_ih->sizes().size() == 2) &&
                       (!y || y->sizes().size() == 3),
                   "x, weight_ih and y must have 3, 2 and 3 dimensions");
  return x ? x->sizes()[2] : weight_ih ? weight_ih->sizes()[1] : 0;
}

ProductsOutputs products(const Tensor& dxw, const MaybeTensor& dhw, const MaybeTensor& x,
                         const MaybeTensor& weight_ih, const MaybeTensor& y, const MaybeTensor& h0,
                         const MaybeTensor& lengths, bool reverse) {
  const auto dtype = dxw.dtype();
  const Shape of_dxw = dxw.sizes();
  LSTM_FUSED_CHECK(of_dxw.size() == 3, "dxw must have 3 dimensions, got ", of_dxw.size());
  const int64_t T = of_dxw[0], B = of_dxw[1], M = of_dxw[2];
  const int64_t I = inputs_of(x, weight_ih, y), P = y ? y->sizes()[2] : 0;
  const Sizes sizes{T, B, I, (M + 3) / 4, P};
  check_sizes(sizes, dtype);
  return by_dtype(dtype, "dxw", [&](auto element) {
    const Tensor da = checked(dxw, "dxw", {T, B, M}, dtype);
    return products_as<decltype(element)>(
        sizes, M, da, dhw ? checked(*dhw, "dhw", {T, B, M}, dtype) : da.borrowed(),
        checked_factors(sizes, M, dtype, x, weight_ih, y, h0, lengths, reverse));
  });
}

// backward and products in one call, without layer norm.
GradientsOutputs gradients(const MaybeTensor& x, const MaybeTensor& weight_ih, const MaybeTensor& y,
                           const MaybeTensor& h0, const MaybeTensor& dy, const MaybeTensor& dh_n,
                           const MaybeTensor& dc_n, const Tensor& c, const Tensor& gates, const Tensor& c0,
                           const Tensor& weight_hh, const MaybeTensor& peephole, const MaybeTensor& weight_hr,
                           const MaybeTensor& lengths, bool reverse, const MaybeTensor& gain_hh,
                           const MaybeTensor& h_mask, const MaybeTensor& zoneout_h,
                           const MaybeTensor& zoneout_c, std::optional<double> cell_clip,
                           const MaybeTensor& hw) {
  LSTM_FUSED_CHECK(!gain_hh && !hw, "cpp_gradients has no layer norm; call cpp_backward and cpp_products");
  const auto dtype = c.dtype();
  const Sizes sizes = sizes_of(c, weight_hh, inputs_of(x, weight_ih, y));
  const VariantArgs variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, sizes, dtype);
  return by_dtype(dtype, "c", [&](auto element) {
    return gradients_as<decltype(element)>(
        sizes,
        checked_backward(sizes, dtype, dtype, dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, weight_hr,
                         lengths, reverse, variant, hw),
        checked_factors(sizes, 4 * sizes.H, dtype, x, weight_ih, y, h0, lengths, reverse));
  });
}

// The plan of a layer with weight_ih on any compiled instruction set, whether or not this machine runs it:
// the numbers that lstm_fused.backends.cpp.plan names. `call` is "forward", "saving forward", "backward",
// "products" or "gradients".
std::vector<int64_t> plan_of(const std::string& isa, DType dtype, const std::vector<int64_t>& TBIHP,
                             const std::string& call, int64_t threads, int64_t l2_bytes) {
  const Isa* found = isa_of(isa);
  LSTM_FUSED_CHECK(found, "the C++ engine is not compiled for \"", isa, "\"");
  LSTM_FUSED_CHECK(TBIHP.size() == 5, "TBIHP must be five sizes, got ", written(TBIHP));
  const Machine machine{*found, l2_bytes, static_cast<int>(threads)};
  const Sizes sizes{TBIHP[0], TBIHP[1], TBIHP[2], TBIHP[3], TBIHP[4]};
  check_sizes(sizes, dtype);
  const ProductSizes all{sizes.T * sizes.B, 4 * sizes.H, sizes.I, sizes.P, true, true, true};
  if (call == "gradients") {
    const GradientsPlan plan = by_dtype(
        dtype, "dtype", [&](auto element) { return plan_gradients<decltype(element)>(machine, sizes, all); });
    return {plan.backward.threads, plan.block_steps, plan.keeps_da};
  }
  if (call == "products") {
    const ProductsPlan plan = by_dtype(
        dtype, "dtype", [&](auto element) { return plan_products<decltype(element)>(machine, all); });
    return {plan.threads, plan.outer_products, plan.KC, plan.packs, plan.copies_dxw, plan.double_buffer};
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
    for (const char* schema : {forward_schema, backward_schema, products_schema, gradients_schema}) {
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
  m.impl("cpp_gradients", boxed<gradients>);
}

}  // namespace lstm_fused
