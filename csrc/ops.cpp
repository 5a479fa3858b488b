// The operators of lstm_fused/ops.py: checks what would be unsafe, allocates, and calls the engine.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dispatch.h"

namespace lstm_fused {
namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

// Below this many products per step and thread, about 2 µs, another thread costs more than it brings.
constexpr int64_t products_per_thread = 50000;
// W_ih x is formed inside the step, or as one product for all steps where rows are too few to use each weight
// well, or W_ih so large that it would leave the cache from step to step.
constexpr int64_t rows_for_x = 6;
constexpr int64_t bytes_for_x = 4 << 20;

// Refuses what the engine would misread, and makes rows contiguous.
Tensor checked(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), "lstm_fused: ", name, " must be on the CPU, got ",
                    tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, "lstm_fused: ", name, " must be ", dtype, ", got ",
                    tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "lstm_fused: ", name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  return tensor.contiguous();
}

Maybe checked(const Maybe& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  return tensor ? Maybe(checked(*tensor, name, shape, dtype)) : std::nullopt;
}

Maybe checked_lengths(const Maybe& lengths, int64_t T, int64_t B) {
  Maybe result = checked(lengths, "lengths", {B}, at::kLong);
  if (result) {
    const int64_t* length = result->const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b)
      TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= T, "lstm_fused: lengths[", b, "] must be in [0, ", T,
                        "], got ", length[b]);
  }
  return result;
}

template <class Real>
const Real* data(const Tensor& tensor) {
  return tensor.const_data_ptr<Real>();
}

template <class Real>
const Real* data(const Maybe& tensor) {
  return tensor ? tensor->const_data_ptr<Real>() : nullptr;
}

Sequence sequence(int64_t T, int64_t B, bool reverse, const Maybe& lengths) {
  return {T, B, reverse, lengths ? lengths->const_data_ptr<int64_t>() : nullptr};
}

// A new tensor, whose memory, where it is large, comes in large pages: to map 4 KB at a time costs as much
// as to compute what is written there.
Tensor empty(const Tensor& like, at::IntArrayRef shape) {
  Tensor tensor = like.new_empty(shape);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + tensor.nbytes()) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

int threads_for(int64_t products) {
  if (at::in_parallel_region()) return 1;
  return static_cast<int>(std::clamp<int64_t>(products / products_per_thread, 1, at::get_num_threads()));
}

using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Real>
ForwardOutputs forward_as(const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
                          const Maybe& bias, const Maybe& peephole, const Maybe& weight_hr, const Tensor& h0,
                          const Tensor& c0, const Maybe& lengths, bool reverse, bool save) {
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = c0.size(1), P = h0.size(1);
  const Engine& isa = engine();
  const Packing packing{isa.vector_bytes / static_cast<int64_t>(sizeof(Real))};
  const bool x_in_step = B >= rows_for_x && I * 4 * H * static_cast<int64_t>(sizeof(Real)) <= bytes_for_x;
  const int threads = threads_for(B * 4 * H * (x_in_step ? P + I : P));

  const Tensor y = empty(x, {T, B, P}), h_n = x.new_empty({B, P}), c_n = x.new_empty({B, H});
  const Tensor c = save ? empty(x, {T, B, H}) : x.new_empty({0});
  const Tensor gates = save ? empty(x, {T, B, 4 * H}) : x.new_empty({0});
  const Tensor xw = x_in_step ? Tensor() : at::linear(x, weight_ih, bias);
  const Tensor packed_ih = x.new_empty({x_in_step ? packing.gates(H, I) : 0});
  const Tensor packed_hh = x.new_empty({packing.gates(H, P)});
  const Tensor packed_hr = x.new_empty({weight_hr ? packing.channels(P, H) : 0});
  const Tensor m = x.new_empty({weight_hr ? B * H : 0});
  std::vector<Row<Real>> rows(static_cast<size_t>(threads * B));

  Forward<Real> f{};
  f.sequence = sequence(T, B, reverse, lengths);
  f.I = I, f.H = H, f.P = P, f.x_in_step = x_in_step;
  f.x = {data<Real>(x), B * I, I};
  f.xw = x_in_step ? nullptr : data<Real>(xw);
  f.weight_ih = data<Real>(weight_ih), f.weight_hh = data<Real>(weight_hh), f.bias = data<Real>(bias);
  f.peephole = data<Real>(peephole), f.weight_hr = data<Real>(weight_hr);
  f.h0 = data<Real>(h0), f.c0 = data<Real>(c0);
  f.y = y.data_ptr<Real>(), f.h_n = h_n.data_ptr<Real>(), f.c_n = c_n.data_ptr<Real>();
  if (save) f.c = c.data_ptr<Real>(), f.gates = gates.data_ptr<Real>();
  f.packed_ih = packed_ih.data_ptr<Real>(), f.packed_hh = packed_hh.data_ptr<Real>();
  f.packed_hr = packed_hr.data_ptr<Real>(), f.m = m.data_ptr<Real>(), f.rows = rows.data();
  run(threads, [&](const Team& team) { isa.forward(f, team); });
  return {y, h_n, c_n, c, gates};
}

ForwardOutputs forward(const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh, const Maybe& bias,
                       const Maybe& peephole, const Maybe& weight_hr, const Tensor& h0, const Tensor& c0,
                       const Maybe& lengths, bool reverse, bool save) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "lstm_fused: x must be float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(x.dim() == 3 && h0.dim() == 2 && c0.dim() == 2,
                    "lstm_fused: x, h0 and c0 must have 3, 2 and 2 dimensions, got ", x.dim(), ", ", h0.dim(),
                    " and ", c0.dim());
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = c0.size(1), P = h0.size(1);
  TORCH_CHECK_VALUE(weight_hr || P == H, "lstm_fused: without weight_hr, h0 must be as wide as c0, ", H,
                    ", got ", P);
  const auto call = [&](auto run_as) {
    return run_as(checked(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {4 * H, I}, dtype),
                  checked(weight_hh, "weight_hh", {4 * H, P}, dtype), checked(bias, "bias", {4 * H}, dtype),
                  checked(peephole, "peephole", {3 * H}, dtype),
                  checked(weight_hr, "weight_hr", {P, H}, dtype), checked(h0, "h0", {B, P}, dtype),
                  checked(c0, "c0", {B, H}, dtype), checked_lengths(lengths, T, B), reverse, save);
  };
  return dtype == at::kFloat ? call(forward_as<float>) : call(forward_as<double>);
}

using BackwardOutputs = std::tuple<Tensor, Tensor, Tensor>;

template <class Real>
BackwardOutputs backward_as(const Maybe& dy, const Maybe& dh_n, const Maybe& dc_n, const Tensor& c,
                            const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                            const Maybe& peephole, const Maybe& weight_hr, const Maybe& lengths,
                            bool reverse) {
  const int64_t T = c.size(0), B = c.size(1), H = c.size(2), P = weight_hh.size(1);
  const Engine& isa = engine();
  const Packing packing{isa.vector_bytes / static_cast<int64_t>(sizeof(Real))};
  const int threads = threads_for(B * 4 * H * P);

  const Tensor dxw = empty(c, {T, B, 4 * H}), dh0 = c.new_empty({B, P}), dc0 = c.new_empty({B, H});
  const Tensor packed_hh = c.new_empty({packing.channels(P, 4 * H)});
  const Tensor packed_hr = c.new_empty({weight_hr ? packing.channels(H, P) : 0});
  const Tensor dh = c.new_empty({weight_hr ? B * P : 0});
  std::vector<Row<Real>> rows(static_cast<size_t>(threads * B));

  Backward<Real> f{};
  f.sequence = sequence(T, B, reverse, lengths);
  f.H = H, f.P = P;
  f.dy = {data<Real>(dy), B * P, P};
  f.dh_n = data<Real>(dh_n), f.dc_n = data<Real>(dc_n);
  f.c = data<Real>(c), f.gates = data<Real>(gates), f.c0 = data<Real>(c0);
  f.weight_hh = data<Real>(weight_hh), f.peephole = data<Real>(peephole), f.weight_hr = data<Real>(weight_hr);
  f.dxw = dxw.data_ptr<Real>(), f.dh0 = dh0.data_ptr<Real>(), f.dc0 = dc0.data_ptr<Real>();
  f.packed_hh = packed_hh.data_ptr<Real>(), f.packed_hr = packed_hr.data_ptr<Real>();
  f.dh = dh.data_ptr<Real>(), f.rows = rows.data();
  run(threads, [&](const Team& team) { isa.backward(f, team); });
  return {dxw, dh0, dc0};
}

BackwardOutputs backward(const Maybe& dy, const Maybe& dh_n, const Maybe& dc_n, const Tensor& c,
                         const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                         const Maybe& peephole, const Maybe& weight_hr, const Maybe& lengths, bool reverse) {
  const auto dtype = c.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "lstm_fused: c must be float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(c.dim() == 3 && weight_hh.dim() == 2,
                    "lstm_fused: c and weight_hh must have 3 and 2 dimensions, got ", c.dim(), " and ",
                    weight_hh.dim(), "; was the forward pass asked to save?");
  const int64_t T = c.size(0), B = c.size(1), H = c.size(2), P = weight_hh.size(1);
  TORCH_CHECK_VALUE(weight_hr || P == H, "lstm_fused: without weight_hr, weight_hh must be [4H, H], got ",
                    weight_hh.sizes());
  const auto call = [&](auto run_as) {
    return run_as(checked(dy, "dy", {T, B, P}, dtype), checked(dh_n, "dh_n", {B, P}, dtype),
                  checked(dc_n, "dc_n", {B, H}, dtype), checked(c, "c", {T, B, H}, dtype),
                  checked(gates, "gates", {T, B, 4 * H}, dtype), checked(c0, "c0", {B, H}, dtype),
                  checked(weight_hh, "weight_hh", {4 * H, P}, dtype),
                  checked(peephole, "peephole", {3 * H}, dtype),
                  checked(weight_hr, "weight_hr", {P, H}, dtype), checked_lengths(lengths, T, B), reverse);
  };
  return dtype == at::kFloat ? call(backward_as<float>) : call(backward_as<double>);
}

std::string isa() { return engine().isa; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(lstm_fused, m) {
  m.def("cpp_isa() -> str", isa);
  m.def("cpp_isas() -> str[]", isas);
}

TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("cpp_forward", forward);
  m.impl("cpp_backward", backward);
}

}  // namespace lstm_fused
