// The operators of lstm_fused/autograd/operators.py: checks what would be unsafe, allocates, and calls the engine.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "pool.h"

namespace lstm_fused {
namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

// Below this many products per step and thread, about 2 µs, another thread costs more than it brings.
constexpr int64_t products_per_thread = 50000;
// W_ih x is formed inside the step, or where rows are too few to use each weight well, for this many rows of
// several steps at a time: the second by a matrix unit, for which weights that do not stay close are too
// slow.
constexpr int64_t rows_for_x = 6, rows_together = 64, rows_together_by_matrices = 128;
// Floats are multiplied in parts by at least so many rows; the second, where half of the weights stay close,
// the third, where fewer do: parts are half as large again, and fetching them takes longer than multiplying.
constexpr int64_t rows_for_parts = 12, rows_for_distant_parts = 24, rows_for_far_parts = 48;
// Rows of all steps that repay what it takes longer to pack weights in parts.
constexpr int64_t rows_that_repay = 128;
// Larger gates are stored past the caches, which could not hold them until the backward pass: a tenth less
// time at 13 and 33 MB, but a tenth more at 4 MB.
constexpr size_t streamed_bytes = 8 << 20;

// Refuses sizes whose products would overflow: a tensor may be expanded from nothing, or hold nothing.
void check_sizes(const Tensor& like, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P) {
  const auto padded = [](int64_t n) { return static_cast<double>(n) + 128; };  // at most, in workspaces
  const double rows = static_cast<double>(std::max<int64_t>(T, 2)) * static_cast<double>(B);
  const double gates = 4 * padded(H), inner = padded(I) + padded(P);
  const double numbers = rows * (gates + inner) + gates * inner;
  TORCH_CHECK(numbers < 0x1p59,
              "lstm_fused: DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
              numbers * static_cast<double>(like.itemsize()), " bytes, for T = ", T, ", B = ", B, ", I = ", I,
              ", H = ", H, " and P = ", P);
}

// Refuses what the engine would misread.
void check(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), "lstm_fused: ", name, " must be on the CPU, got ",
                    tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, "lstm_fused: ", name, " must be ", dtype, ", got ",
                    tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "lstm_fused: ", name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  const size_t needed = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize(),
                                                         tensor.storage_offset());
  TORCH_CHECK_VALUE(needed <= tensor.storage().nbytes(), "lstm_fused: ", name, " must have a storage of ",
                    needed, " bytes, got ", tensor.storage().nbytes());
}

// The same, and makes the tensor contiguous.
Tensor checked(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  check(tensor, name, shape, dtype);
  return tensor.contiguous();
}

// The same for [T, B] of rows, which may lie apart where each is contiguous.
Tensor checked_rows(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  check(tensor, name, shape, dtype);
  return tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

Maybe checked_rows(const Maybe& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  return tensor ? Maybe(checked_rows(*tensor, name, shape, dtype)) : std::nullopt;
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

template <class Number>
constexpr at::ScalarType dtype_of = at::kFloat;
template <>
constexpr at::ScalarType dtype_of<double> = at::kDouble;
template <>
constexpr at::ScalarType dtype_of<BFloat16> = at::kBFloat16;

// Where a tensor without elements lies: it has no memory, but null tells the engine that there is no tensor.
alignas(64) char nowhere[1];

template <class Number>
const Number* data(const Tensor& tensor) {
  return static_cast<const Number*>(tensor.numel() ? tensor.const_data_ptr() : nowhere);
}

template <class Number>
const Number* data(const Maybe& tensor) {
  return tensor ? data<Number>(*tensor) : nullptr;
}

template <class Number>
Number* out(const Tensor& tensor) {
  return static_cast<Number*>(tensor.numel() ? tensor.mutable_data_ptr() : nowhere);
}

template <class Number>
Rows<Number> rows_of(const Maybe& tensor) {
  return tensor ? Rows<Number>{data<Number>(*tensor), tensor->stride(0), tensor->stride(1)} : Rows<Number>{};
}

// Without rows, or channels, no step has anything to do, however many there are.
Sequence sequence(int64_t T, int64_t B, int64_t channels, bool reverse, const Maybe& lengths) {
  return {B == 0 || channels == 0 ? 0 : T, B, reverse, data<int64_t>(lengths)};
}

// Memory for the time of a call.
class Workspace {
 public:
  template <class Item>
  Item* take(int64_t count) {
    if (count == 0) return nullptr;
    held_.push_back(empty(bytes_, {count * static_cast<int64_t>(sizeof(Item))}));
    return static_cast<Item*>(held_.back().mutable_data_ptr());
  }

 private:
  Tensor bytes_ = at::empty({0}, at::kByte);
  std::vector<Tensor> held_;
};

// What the operators are asked for beyond the textbook, checked.
struct Asked {
  Maybe gain_hh, h_mask, zoneout_h, zoneout_c;
  std::optional<double> cell_clip;

  Asked(const Maybe& gain, const Maybe& mask, const Maybe& of_h, const Maybe& of_c,
        std::optional<double> bound, int64_t T, int64_t B, int64_t H, int64_t P, at::ScalarType dtype)
      : gain_hh(checked(gain, "gain_hh", {4 * H}, dtype)),
        h_mask(checked(mask, "h_mask", {B, P}, dtype)),
        zoneout_h(checked_rows(of_h, "zoneout_h", {T, B, P}, dtype)),
        zoneout_c(checked_rows(of_c, "zoneout_c", {T, B, H}, dtype)),
        cell_clip(bound) {}

  template <class Number>
  Variant<Number> as() const {
    constexpr auto infinite = std::numeric_limits<Real<Number>>::infinity();
    return {gain_hh || h_mask || zoneout_h || zoneout_c || cell_clip,
            data<Number>(gain_hh),
            data<Number>(h_mask),
            rows_of<Number>(zoneout_h),
            rows_of<Number>(zoneout_c),
            cell_clip ? static_cast<Real<Number>>(*cell_clip) : infinite};
  }
};

template <class Number>
Relay<Number> relay(Workspace& space, int64_t B, int64_t N, bool in_parts = false, int64_t slots = 2) {
  Relay<Number> result{nullptr, B, N, slots, in_parts};
  result.data = space.take<Number>(result.size());
  return result;
}

// For so many products of each of B rows.
int threads_for(int64_t B, int64_t products) {
  if (at::in_parallel_region()) return 1;
  const double useful = static_cast<double>(B) * static_cast<double>(products) / products_per_thread;
  return static_cast<int>(std::clamp<double>(useful, 1, at::get_num_threads()));
}

// Whether weights of so many numbers for each thread stay close to it.
template <class Number>
bool stays_near(int64_t numbers) {
  return numbers * static_cast<int64_t>(sizeof(Number)) <= near_bytes();
}

// Whether B rows had better meet weights in parts, of so many numbers for each thread.
template <class Number>
bool pays_in_parts(const Engine& isa, int64_t B, int64_t numbers) {
  const int64_t rows = stays_near<Number>(numbers)       ? rows_for_parts
                       : stays_near<Number>(numbers / 2) ? rows_for_distant_parts
                                                         : rows_for_far_parts;
  return std::is_same_v<Number, float> && isa.in_parts && B >= rows;
}

// How a forward pass forms its products.
struct Form {
  int64_t x_steps;  // as in Forward, where there is W_ih
  bool x_in_parts, h_in_parts;
};

template <class Number>
Form form_for(const Engine& isa, const Packing<Number>& packing, int64_t T, int64_t B, int64_t I, int64_t H,
              int64_t P, bool save, int threads) {
  // float64 always inside: a sequence in pieces then equals the whole one bit for bit.
  if (std::is_same_v<Number, double> || T * B == 0) return {1, false, false};
  const auto steps_of = [&](int64_t rows) {
    return static_cast<int64_t>(
        std::bit_floor(static_cast<uint64_t>(std::min(std::max<int64_t>(rows / B, 1), T))));
  };
  // The peak of a forward pass, where torch.nn.LSTM holds another y, must not grow by more than half of that;
  // one that saves five times y for its backward pass may take two more. So what is saved is asked for, too.
  const auto costs = [&](int64_t K) {
    return std::is_same_v<Number, float> ? packing.gates(H, K, true) - packing.gates(H, K) : 0;
  };
  const int64_t most = save ? 2 * T * B * P : T * B * P / 2;
  const int64_t spare = T * B < rows_that_repay ? 0 : most;
  const int64_t both = packing.gates(H, I) + costs(I) + packing.gates(H, P) + costs(P);
  const bool h_in_parts = pays_in_parts<Number>(isa, B, both / threads) && costs(P) <= spare;
  const bool x_may = isa.in_parts && costs(I) + (h_in_parts ? costs(P) : 0) <= spare;
  const bool x_in_parts = x_may && std::is_same_v<Number, float>;
  if (B < rows_for_x) return {steps_of(rows_together), x_in_parts, false};
  // Of weights that are fetched from afar, those of at least four steps together; in parts, those of which
  // not even half stay close.
  const bool near = stays_near<Number>(h_in_parts ? both / threads / 2 : both / threads);
  if (x_may && !near && T * B >= rows_together_by_matrices && B <= rows_together_by_matrices / 4)
    return {steps_of(rows_together_by_matrices), x_in_parts, h_in_parts};
  return {1, x_in_parts && h_in_parts, h_in_parts};
}

using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Number>
ForwardOutputs forward_as(const Tensor& x, const Maybe& weight_ih, const Tensor& weight_hh, const Maybe& bias,
                          const Maybe& peephole, const Maybe& weight_hr, const Tensor& h0, const Tensor& c0,
                          const Maybe& lengths, bool reverse, bool save, const Asked& asked) {
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = c0.size(1), P = h0.size(1);
  const Engine& isa = engine();
  const Packing<Number> packing{isa.vector_bytes / static_cast<int64_t>(sizeof(Real<Number>))};
  const int threads = threads_for(B, 4 * H * (weight_ih ? P + I : P) / together<Number>);
  const Form form = form_for(isa, packing, T, B, weight_ih ? I : 0, H, P, save, threads);
  const int64_t x_steps = weight_ih ? form.x_steps : 0;

  const Tensor y = empty(x, {T, B, P}), h_n = empty(x, {B, P}), c_n = empty(x, {B, H});
  const Tensor c = save ? empty(x, {T, B, H}) : x.new_empty({0});
  const Tensor gates = save ? empty(x, {T, B, 4 * H}) : x.new_empty({0});

  Workspace space;
  Forward<Number> f{};
  f.sequence = sequence(T, B, H + P, reverse, lengths);
  f.I = I, f.H = H, f.P = P, f.x_steps = x_steps, f.streams = gates.nbytes() > streamed_bytes;
  f.x = rows_of<Number>(x);
  f.weight_ih = data<Number>(weight_ih), f.weight_hh = data<Number>(weight_hh), f.bias = data<Number>(bias);
  f.peephole = data<Number>(peephole), f.weight_hr = data<Number>(weight_hr);
  f.h0 = data<Number>(h0), f.c0 = data<Number>(c0);
  f.y = out<Number>(y), f.h_n = out<Number>(h_n), f.c_n = out<Number>(c_n);
  if (save) f.c = out<Number>(c), f.gates = out<Number>(gates);
  f.variant = asked.as<Number>();
  f.packed_ih = space.take<Number>(weight_ih ? packing.gates(H, I, form.x_in_parts) : 0);
  f.packed_hh = space.take<Number>(packing.gates(H, P, form.h_in_parts));
  f.packed_hr = space.take<Number>(weight_hr ? packing.channels(P, H) : 0);
  if (weight_ih) f.x_next = relay<Number>(space, B, I, form.x_in_parts, std::max<int64_t>(x_steps, 2));
  f.xw = space.take<Real<Number>>(x_steps > 1 ? x_steps * B * 4 * H : 0);
  f.h = relay<Number>(space, B, P, form.h_in_parts);
  if (weight_hr) f.m = relay<Number>(space, B, H);
  f.cell = space.take<Real<Number>>(B * H);
  f.hw = space.take<Real<Number>>(asked.gain_hh ? B * 4 * H : 0);
  f.rows = space.take<Row<Number>>(threads * B);
  run(threads, [&](const Team& team) { isa.forward(f, team); });
  return {y, h_n, c_n, c, gates};
}

// Calls `as` with the number that x holds.
template <class As>
auto by_dtype(const Tensor& tensor, const char* name, As as) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return as(float{});
    case at::kDouble:
      return as(double{});
    case at::kBFloat16:
      return as(BFloat16{});
    default:
      TORCH_CHECK_TYPE(false, "lstm_fused: ", name, " must be bfloat16, float32 or float64, got ",
                       tensor.scalar_type());
  }
}

ForwardOutputs forward(const Tensor& x, const Maybe& weight_ih, const Tensor& weight_hh, const Maybe& bias,
                       const Maybe& peephole, const Maybe& weight_hr, const Tensor& h0, const Tensor& c0,
                       const Maybe& lengths, bool reverse, bool save, const Maybe& gain_hh,
                       const Maybe& h_mask, const Maybe& zoneout_h, const Maybe& zoneout_c,
                       std::optional<double> cell_clip) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(x.dim() == 3 && h0.dim() == 2 && c0.dim() == 2,
                    "lstm_fused: x, h0 and c0 must have 3, 2 and 2 dimensions, got ", x.dim(), ", ", h0.dim(),
                    " and ", c0.dim());
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = c0.size(1), P = h0.size(1);
  check_sizes(x, T, B, I, H, P);
  TORCH_CHECK_VALUE(weight_hr || P == H, "lstm_fused: without weight_hr, h0 must be as wide as c0, ", H,
                    ", got ", P);
  TORCH_CHECK_VALUE(weight_ih || I == 4 * H, "lstm_fused: without weight_ih, x must be [T, B, 4H], got ",
                    x.sizes());
  const Asked asked(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, T, B, H, P, dtype);
  return by_dtype(x, "x", [&](auto number) {
    return forward_as<decltype(number)>(
        checked_rows(x, "x", {T, B, I}, dtype), checked(weight_ih, "weight_ih", {4 * H, I}, dtype),
        checked(weight_hh, "weight_hh", {4 * H, P}, dtype), checked(bias, "bias", {4 * H}, dtype),
        checked(peephole, "peephole", {3 * H}, dtype), checked(weight_hr, "weight_hr", {P, H}, dtype),
        checked(h0, "h0", {B, P}, dtype), checked(c0, "c0", {B, H}, dtype), checked_lengths(lengths, T, B),
        reverse, save, asked);
  });
}

using BackwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Number>
BackwardOutputs backward_as(const Maybe& dy, const Maybe& dh_n, const Maybe& dc_n, const Tensor& c,
                            const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                            const Maybe& peephole, const Maybe& weight_hr, const Maybe& lengths, bool reverse,
                            const Asked& asked, const Maybe& hw) {
  const int64_t T = c.size(0), B = c.size(1), H = c.size(2), P = weight_hh.size(1);
  const Engine& isa = engine();
  const Packing<Number> packing{isa.vector_bytes / static_cast<int64_t>(sizeof(Real<Number>))};
  const int threads = threads_for(B, 4 * H * P / together<Number>);

  const Tensor dxw = empty(c, {T, B, 4 * H}), dh0 = empty(c, {B, P}), dc0 = empty(c, {B, H});
  const Tensor dbias = c.new_empty({4 * H}), dpeephole = c.new_empty({3 * H});
  const Tensor dhw = hw ? empty(c, {T, B, 4 * H}) : c.new_empty({0});

  Workspace space;
  Backward<Number> f{};
  f.sequence = sequence(T, B, H + P, reverse, lengths);
  f.H = H, f.P = P, f.streams = dxw.nbytes() > streamed_bytes;
  f.dy = rows_of<Number>(dy);
  f.dh_n = data<Number>(dh_n), f.dc_n = data<Number>(dc_n);
  f.c = data<Number>(c), f.gates = data<Number>(gates), f.c0 = data<Number>(c0);
  f.weight_hh = data<Number>(weight_hh), f.peephole = data<Number>(peephole);
  f.weight_hr = data<Number>(weight_hr);
  f.variant = asked.as<Number>();
  if (hw) f.hw = data<Real<Number>>(hw), f.dhw = out<Number>(dhw);
  f.dxw = out<Number>(dxw), f.dh0 = out<Number>(dh0), f.dc0 = out<Number>(dc0);
  f.dbias = out<Number>(dbias), f.dpeephole = out<Number>(dpeephole);
  // What layer norm makes of da is read again, as numbers.
  const int64_t numbers = packing.channels(P, 4 * H, true) / threads;
  const bool da_in_parts =
      !asked.gain_hh && T * B >= rows_that_repay && pays_in_parts<Number>(isa, B, numbers);
  f.packed_hh = space.take<Number>(packing.channels(P, 4 * H, da_in_parts));
  f.packed_hr = space.take<Number>(weight_hr ? packing.channels(H, P) : 0);
  f.da = relay<Number>(space, B, 4 * H, da_in_parts);
  if (weight_hr) f.dh = relay<Number>(space, B, P);
  f.dcell = space.take<Real<Number>>(B * H);
  f.dh_kept = space.take<Real<Number>>(asked.zoneout_h ? B * P : 0);
  f.width = (H + packing.lanes - 1) / packing.lanes * packing.lanes;
  f.sums = space.take<double>(threads * 14 * f.width);
  f.rows = space.take<Row<Number>>(threads * B);
  run(threads, [&](const Team& team) { isa.backward(f, team); });
  return {dxw, dh0, dc0, dbias, dpeephole, dhw};
}

BackwardOutputs backward(const Maybe& dy, const Maybe& dh_n, const Maybe& dc_n, const Tensor& c,
                         const Tensor& gates, const Tensor& c0, const Tensor& weight_hh,
                         const Maybe& peephole, const Maybe& weight_hr, const Maybe& lengths, bool reverse,
                         const Maybe& gain_hh, const Maybe& h_mask, const Maybe& zoneout_h,
                         const Maybe& zoneout_c, std::optional<double> cell_clip, const Maybe& hw) {
  const auto dtype = c.scalar_type();
  TORCH_CHECK_VALUE(c.dim() == 3 && weight_hh.dim() == 2,
                    "lstm_fused: c and weight_hh must have 3 and 2 dimensions, got ", c.dim(), " and ",
                    weight_hh.dim(), "; was the forward pass asked to save?");
  const int64_t T = c.size(0), B = c.size(1), H = c.size(2), P = weight_hh.size(1);
  check_sizes(c, T, B, 0, H, P);
  TORCH_CHECK_VALUE(weight_hr || P == H, "lstm_fused: without weight_hr, weight_hh must be [4H, H], got ",
                    weight_hh.sizes());
  TORCH_CHECK_VALUE(gain_hh.has_value() == hw.has_value(), "lstm_fused: gain_hh and hw go together");
  const Asked asked(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip, T, B, H, P, dtype);
  return by_dtype(c, "c", [&](auto number) {
    using Wide = Real<decltype(number)>;
    return backward_as<decltype(number)>(
        dy ? Maybe(checked_rows(*dy, "dy", {T, B, P}, dtype)) : std::nullopt,
        checked(dh_n, "dh_n", {B, P}, dtype), checked(dc_n, "dc_n", {B, H}, dtype),
        checked(c, "c", {T, B, H}, dtype), checked(gates, "gates", {T, B, 4 * H}, dtype),
        checked(c0, "c0", {B, H}, dtype), checked(weight_hh, "weight_hh", {4 * H, P}, dtype),
        checked(peephole, "peephole", {3 * H}, dtype), checked(weight_hr, "weight_hr", {P, H}, dtype),
        checked_lengths(lengths, T, B), reverse, asked, checked(hw, "hw", {T, B, 4 * H}, dtype_of<Wide>));
  });
}

std::string isa() { return engine().isa; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(lstm_fused, m) {
  m.def("cpp_isa() -> str", isa);
  m.def("cpp_isas() -> str[]", isas);
  m.def("cpp_on_intel() -> bool", on_intel);
}

TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("cpp_forward", forward);
  m.impl("cpp_backward", backward);
}

}  // namespace lstm_fused
