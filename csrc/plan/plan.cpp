// The decisions of plan.h, by the thresholds of thresholds.h.
#include "plan/plan.h"

#include <algorithm>
#include <bit>
#include <type_traits>

#include "gemm/layout.h"
#include "thresholds.h"

namespace lstm_fused {
namespace {

template <class scalar_t>
constexpr bool is_float32 = std::is_same_v<scalar_t, float>;
template <class scalar_t>
constexpr int64_t bytes_of = sizeof(scalar_t);

int threads_for(const Machine& machine, double products) {
  return static_cast<int>(std::clamp<double>(products / min_products_per_thread, 1, machine.threads));
}

template <class scalar_t>
bool fits_l2(const Machine& machine, int64_t elements) {
  return elements * bytes_of<scalar_t> <= l2_budget(machine.l2_bytes);
}

// Whether bf16x3 is faster for B rows, given the packed elements that one thread reads at every step.
template <class scalar_t>
bool bf16x3_pays(const Machine& machine, int64_t B, int64_t elements) {
  const int64_t min_rows = fits_l2<scalar_t>(machine, elements)       ? bf16x3_min_rows_l2
                           : fits_l2<scalar_t>(machine, elements / 2) ? bf16x3_min_rows_half_l2
                                                                      : bf16x3_min_rows_beyond_l2;
  return is_float32<scalar_t> && machine.isa.has_amx && B >= min_rows;
}

// Splitting rows pays while all packed weights fit in L2 and each thread's rows fill a register tile.
template <class scalar_t>
int32_t min_rows_per_thread(const Machine& machine, int64_t elements, bool bf16x3) {
  const bool amx = machine.isa.has_amx && (bf16x3 || k_pack<scalar_t> == 2);
  const int64_t tile_rows = amx ? amx_tile_rows : machine.isa.mr;
  return fits_l2<scalar_t>(machine, elements) ? static_cast<int32_t>(tile_rows) : 0;
}

// Steps of about so many rows in all, a power of two.
int64_t steps_of(int64_t rows, const Sizes& sizes) {
  const int64_t steps = std::min(std::max<int64_t>(rows / sizes.B, 1), sizes.T);
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(steps)));
}

// Sets x_steps, x_bf16x3 and h_bf16x3; plan.threads is set.
template <class scalar_t>
void plan_products(const Machine& machine, const Sizes& sizes, bool save, Plan& plan) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P, I = sizes.weight_ih ? sizes.I : 0;
  plan.x_steps = 1;
  // float64 is always fused: a sequence in pieces then equals the whole one bit for bit.
  if (std::is_same_v<scalar_t, double> || T * B == 0) return;

  const Packing<scalar_t> packing{machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>};
  const auto extra = [&](int64_t K) {
    return is_float32<scalar_t> ? packing.gates(H, K, true) - packing.gates(H, K) : 0;
  };
  const int64_t max_extra = T * B < bf16x3_min_total_rows ? 0 : bf16x3_max_extra(T * B * P, save);
  const int64_t split_elements = packing.gates(H, I) + extra(I) + packing.gates(H, P) + extra(P);
  const int64_t elements = split_elements / plan.threads;

  const bool split_h = bf16x3_pays<scalar_t>(machine, B, elements) && extra(P) <= max_extra;
  const bool amx_x = machine.isa.has_amx && extra(I) + (split_h ? extra(P) : 0) <= max_extra;
  const bool split_x = amx_x && is_float32<scalar_t>;
  if (B < min_fused_rows) {
    plan.x_steps = steps_of(hoisted_rows, sizes);
    plan.x_bf16x3 = split_x;
    return;
  }
  plan.h_bf16x3 = split_h;
  // Split weights stay fused if half of them fit in L2: they are read fast enough.
  const bool in_l2 = fits_l2<scalar_t>(machine, split_h ? elements / 2 : elements);
  const bool enough_rows = T * B >= hoisted_rows_amx && B <= hoisted_rows_amx / min_hoisted_steps_amx;
  if (amx_x && !in_l2 && enough_rows) {
    plan.x_steps = steps_of(hoisted_rows_amx, sizes);
    plan.x_bf16x3 = split_x;
  } else {
    plan.x_bf16x3 = split_x && split_h;
  }
}

}  // namespace

template <class scalar_t>
Plan plan_forward(const Machine& machine, const Sizes& sizes, bool save) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P, I = sizes.weight_ih ? sizes.I : 0;
  const int64_t products = 4 * H * (P + I) / k_pack<scalar_t>;
  Plan plan{};
  plan.threads = threads_for(machine, static_cast<double>(B) * static_cast<double>(products));
  plan.streaming_stores = save && T * B * 4 * H * bytes_of<scalar_t> > streaming_min_bytes;
  plan_products<scalar_t>(machine, sizes, save, plan);
  if (!sizes.weight_ih) plan.x_steps = 0;
  const int64_t depth =
      packed_k<scalar_t>(P, plan.h_bf16x3) + (plan.x_steps == 1 ? packed_k<scalar_t>(I, plan.x_bf16x3) : 0);
  plan.min_rows_per_thread = min_rows_per_thread<scalar_t>(machine, 4 * H * depth, plan.h_bf16x3);
  return plan;
}

template <class scalar_t>
Plan plan_backward(const Machine& machine, const Sizes& sizes) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P;
  const Packing<scalar_t> packing{machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>};
  const int64_t products = 4 * H * P / k_pack<scalar_t>;
  Plan plan{};
  plan.threads = threads_for(machine, static_cast<double>(B) * static_cast<double>(products));
  plan.streaming_stores = T * B * 4 * H * bytes_of<scalar_t> > streaming_min_bytes;
  // The backward pass of layer norm reads da back as float32, so it cannot be stored split.
  const int64_t elements = packing.channels(P, 4 * H, true) / plan.threads;
  plan.da_bf16x3 =
      !sizes.gain_hh && T * B >= bf16x3_min_total_rows && bf16x3_pays<scalar_t>(machine, B, elements);
  const int64_t depth = packed_k<scalar_t>(4 * H, plan.da_bf16x3);
  plan.min_rows_per_thread = min_rows_per_thread<scalar_t>(machine, P * depth, plan.da_bf16x3);
  return plan;
}

template Plan plan_forward<float>(const Machine&, const Sizes&, bool);
template Plan plan_forward<double>(const Machine&, const Sizes&, bool);
template Plan plan_forward<BFloat16>(const Machine&, const Sizes&, bool);
template Plan plan_backward<float>(const Machine&, const Sizes&);
template Plan plan_backward<double>(const Machine&, const Sizes&);
template Plan plan_backward<BFloat16>(const Machine&, const Sizes&);

}  // namespace lstm_fused
