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

// The number of threads in 1..max with the shortest step by plan_for(n).step_us; of equals the fewest
// threads.
template <class PlanFor>
Plan fastest(int max, const PlanFor& plan_for) {
  Plan best = plan_for(1);
  for (int n = 2; n <= max; ++n)
    if (const Plan plan = plan_for(n); plan.step_us < best.step_us) best = plan;
  return best;
}

// The model behind it: the largest share of a step's multiply-adds, the step's barrier where threads split
// `channels`, and the step's part of what a call does once, packing and starting threads.
double step_us(const Plan& plan, const Sizes& sizes, int64_t products, int64_t channels, int64_t packed) {
  const int64_t n = plan.threads, B = std::max<int64_t>(sizes.B, 1);
  const bool rows = plan.min_rows_per_thread > 0 && B >= n * plan.min_rows_per_thread;
  const int64_t parts = std::max<int64_t>(rows ? B : channels, 1);
  const double share = static_cast<double>((parts + n - 1) / n) / static_cast<double>(parts);
  const double work = static_cast<double>(B) * static_cast<double>(products) / products_per_us * share;
  const double call = static_cast<double>(packed) / packed_per_us / static_cast<double>(n) + team_start_us(n);
  return work + (rows ? 0 : barrier_us(n)) + call / static_cast<double>(std::max<int64_t>(sizes.T, 1));
}

template <class scalar_t>
bool fits_l2(const Machine& machine, int64_t elements) {
  return elements * bytes_of<scalar_t> <= l2_budget(machine.l2_bytes);
}

template <class scalar_t>
bool by_amx(const Machine& machine) {
  return machine.isa.has_amx && k_pack<scalar_t> == 2;
}

// Rows of the tallest accumulator tile.
template <class scalar_t>
int64_t tile_rows(const Machine& machine) {
  return by_amx<scalar_t>(machine) ? amx_tile_rows : machine.isa.mr;
}

// Bytes of gates or dxw.
template <class scalar_t>
int64_t gate_bytes(const Sizes& sizes) {
  return sizes.T * sizes.B * 4 * sizes.H * bytes_of<scalar_t>;
}

// Whether gates or dxw are stored past the caches: if they are large, and vectors are whole lines.
template <class scalar_t>
bool streams(const Machine& machine, const Sizes& sizes) {
  return machine.isa.vector_bytes >= min_streamed_bytes && gate_bytes<scalar_t>(sizes) > streaming_min_bytes;
}

// Whether a step's product fetches lines for its epilogue; those by AMX fetch none.
template <class scalar_t>
bool prefetches(const Machine& machine, const Sizes& sizes) {
  return !by_amx<scalar_t>(machine) && gate_bytes<scalar_t>(sizes) > prefetch_min_bytes;
}

// Splitting rows pays while all packed weights fit in L2 and each thread's rows fill a register tile.
template <class scalar_t>
int32_t min_rows_per_thread(const Machine& machine, int64_t elements) {
  return fits_l2<scalar_t>(machine, elements) ? static_cast<int32_t>(tile_rows<scalar_t>(machine)) : 0;
}

// Whether weights are packed for so many rows in all. Those that are not are [K, N] with N in whole panels.
template <class scalar_t>
bool packs(const Machine& machine, int64_t rows, int64_t max_unpacked, int64_t N) {
  const int64_t NR = 2 * machine.isa.vector_bytes / bytes_of<scalar_t>;
  return k_pack<scalar_t> > 1 || rows > max_unpacked || N % NR != 0;
}

// The largest power of two that is not above n.
int64_t power_of_two(int64_t n) { return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n))); }

// Steps of about so many rows in all, a power of two.
int64_t steps_of(int64_t rows, const Sizes& sizes) {
  return power_of_two(std::min(std::max<int64_t>(rows / sizes.B, 1), sizes.T));
}

// Steps whose W_ih x is computed at once.
template <class scalar_t>
int64_t hoisted_steps(int threads, const Machine& machine, const Sizes& sizes) {
  if (!sizes.weight_ih) return 0;
  // float64 is always fused: a sequence in pieces then equals the whole one bit for bit.
  if (std::is_same_v<scalar_t, double> || sizes.T * sizes.B == 0) return 1;
  if (sizes.B < min_fused_rows) return steps_of(hoisted_rows, sizes);
  if (!by_amx<scalar_t>(machine)) return 1;
  const Packing<scalar_t> packing{machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>};
  const int64_t elements = (packing.gates(sizes.H, sizes.I) + packing.gates(sizes.H, sizes.P)) / threads;
  const bool enough_rows =
      sizes.T * sizes.B >= hoisted_rows_amx && sizes.B <= hoisted_rows_amx / min_hoisted_steps_amx;
  return enough_rows && !fits_l2<scalar_t>(machine, elements) ? steps_of(hoisted_rows_amx, sizes) : 1;
}

template <class scalar_t>
Plan plan_forward_on(int threads, const Machine& machine, const Sizes& sizes, bool save) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P, I = sizes.weight_ih ? sizes.I : 0;
  const int64_t lanes = machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>;
  Plan plan{};
  plan.threads = threads;
  plan.streaming_stores = save && streams<scalar_t>(machine, sizes);
  plan.prefetches = save && P == H && prefetches<scalar_t>(machine, sizes);
  plan.x_steps = hoisted_steps<scalar_t>(threads, machine, sizes);
  // float64 always packs: a sequence in pieces then equals the whole one bit for bit.
  plan.packs = !is_float32<scalar_t> || packs<scalar_t>(machine, T * B, max_unpacked_rows, 0);
  const int64_t depth = padded_k<scalar_t>(P) + (plan.x_steps == 1 ? padded_k<scalar_t>(I) : 0);
  plan.min_rows_per_thread = min_rows_per_thread<scalar_t>(machine, 4 * H * depth);
  plan.step_us = step_us(plan, sizes, 4 * H * (P + I) / k_pack<scalar_t>, (H + lanes - 1) / lanes,
                         plan.packs ? 4 * H * (P + I) : 0);
  return plan;
}

template <class scalar_t>
Plan plan_backward_on(int threads, const Machine& machine, const Sizes& sizes) {
  const int64_t T = sizes.T, B = sizes.B, H = sizes.H, P = sizes.P;
  const Packing<scalar_t> packing{machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>};
  Plan plan{};
  plan.threads = threads;
  plan.streaming_stores = streams<scalar_t>(machine, sizes);
  plan.prefetches = prefetches<scalar_t>(machine, sizes);
  plan.min_rows_per_thread = min_rows_per_thread<scalar_t>(machine, P * padded_k<scalar_t>(4 * H));
  plan.packs = packs<scalar_t>(machine, T * B, max_unpacked_rows, P);
  const int64_t panels = (P + 2 * packing.lanes - 1) / (2 * packing.lanes);
  plan.step_us = step_us(plan, sizes, 4 * H * P / k_pack<scalar_t>, panels, plan.packs ? 4 * H * P : 0);
  return plan;
}

// Steps whose products are formed during the recurrence: at most max_block_steps and max_block_rows, if
// what a thread then reads and writes again and again stays in its L2.
template <class scalar_t>
int64_t block_steps(const Machine& machine, const Sizes& sizes, const GradientsPlan& plan) {
  const int64_t n = plan.backward.threads, I = sizes.I, H = sizes.H, P = sizes.P;
  const bool own_rows =
      n == 1 || (plan.backward.min_rows_per_thread > 0 && sizes.B >= n * plan.backward.min_rows_per_thread);
  // VNNI pairs of da would have to be packed; without channels the recurrence has no steps.
  if (k_pack<scalar_t> > 1 || H + P == 0 || !own_rows || plan.products.threads > n || !plan.backward.packs)
    return 0;
  const Packing<scalar_t> packing{machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>};
  const int64_t rows = (sizes.B + n - 1) / n;
  const int64_t weights_and_sums = 2 * (packing.channels(I, 4 * H) + packing.channels(P, 4 * H));
  for (int64_t steps = max_block_steps; steps > 1; steps /= 2)
    if (steps * rows <= max_block_rows && 2 * steps <= sizes.T &&
        fits_l2<scalar_t>(machine, weights_and_sums + steps * rows * row_stride<scalar_t>(4 * H)))
      return steps * rows >= min_block_rows ? steps : 0;
  return 0;
}

}  // namespace

template <class scalar_t>
Plan plan_forward(const Machine& machine, const Sizes& sizes, bool save) {
  return fastest(machine.threads, [&](int n) { return plan_forward_on<scalar_t>(n, machine, sizes, save); });
}

template <class scalar_t>
Plan plan_backward(const Machine& machine, const Sizes& sizes) {
  return fastest(machine.threads, [&](int n) { return plan_backward_on<scalar_t>(n, machine, sizes); });
}

template <class scalar_t>
ProductsPlan plan_products(const Machine& machine, const ProductSizes& sizes) {
  const int64_t columns = (sizes.dweight_ih ? sizes.I : 0) + (sizes.dweight_hh ? sizes.P : 0);
  const int64_t multiply_adds = sizes.M * ((sizes.dx ? sizes.I : 0) + columns) / k_pack<scalar_t>;
  ProductsPlan plan{};
  plan.threads = threads_for(machine, static_cast<double>(sizes.K) * static_cast<double>(multiply_adds));
  plan.outer_products = k_pack<scalar_t> == 1 && sizes.K <= max_outer_rows;
  plan.rows_at_once = MC_tiles * tile_rows<scalar_t>(machine);
  const int64_t fitting = packed_da_bytes(machine.l2_bytes) / (plan.rows_at_once * bytes_of<scalar_t>);
  const int64_t KC = std::clamp(power_of_two(fitting), min_products_kc, max_products_kc);
  plan.KC = std::clamp<int64_t>(sizes.K, 1, KC);
  plan.packs = packs<scalar_t>(machine, sizes.K, max_unpacked_dx_rows, sizes.I);
  plan.copies_dxw = k_pack<scalar_t> > 1 || sizes.M * bytes_of<scalar_t> % l1_way_bytes == 0;
  const Packing<scalar_t> packing{machine.isa.vector_bytes / bytes_of<acc_t<scalar_t>>};
  const auto packed = [&](bool wanted, int64_t N) {
    return wanted ? packing.channels(N, plan.KC) * bytes_of<scalar_t> : 0;
  };
  plan.double_buffer =
      plan.threads > 1 && sizes.K > plan.KC &&
      packed(sizes.dweight_ih, sizes.I) + packed(sizes.dweight_hh, sizes.P) <= max_double_buffer_bytes;
  return plan;
}

template <class scalar_t>
GradientsPlan plan_gradients(const Machine& machine, const Sizes& sizes, const ProductSizes& products) {
  GradientsPlan plan{plan_backward<scalar_t>(machine, sizes), plan_products<scalar_t>(machine, products), 0,
                     false};
  plan.block_steps = block_steps<scalar_t>(machine, sizes, plan);
  plan.keeps_da = plan.block_steps == 0 && !by_amx<scalar_t>(machine);
  if (plan.keeps_da) plan.products.copies_dxw = plan.backward.streaming_stores = false;
  return plan;
}

template Plan plan_forward<float>(const Machine&, const Sizes&, bool);
template Plan plan_forward<double>(const Machine&, const Sizes&, bool);
template Plan plan_forward<BFloat16>(const Machine&, const Sizes&, bool);
template Plan plan_backward<float>(const Machine&, const Sizes&);
template Plan plan_backward<double>(const Machine&, const Sizes&);
template Plan plan_backward<BFloat16>(const Machine&, const Sizes&);
template ProductsPlan plan_products<float>(const Machine&, const ProductSizes&);
template ProductsPlan plan_products<double>(const Machine&, const ProductSizes&);
template ProductsPlan plan_products<BFloat16>(const Machine&, const ProductSizes&);
template GradientsPlan plan_gradients<float>(const Machine&, const Sizes&, const ProductSizes&);
template GradientsPlan plan_gradients<double>(const Machine&, const Sizes&, const ProductSizes&);
template GradientsPlan plan_gradients<BFloat16>(const Machine&, const Sizes&, const ProductSizes&);

}  // namespace lstm_fused
