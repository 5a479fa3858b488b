// The sums over all steps of all rows behind dbias and dpeephole, in double.
#pragma once

#include "isa/simd.h"
#include "lstm/engine.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// Knuth's TwoSum: sum += v, and lost += the exact rounding error. For float64 sums over all steps of all
// rows.
template <class T>
inline void two_sum(T& sum, T& lost, T v) {
  const T before = sum;
  sum += v;
  const T added = sum - before;
  lost += (before - (sum - added)) + (v - added);
}

// Adds v to sums of double. Those of float64 come with their rounding errors, `lost` elements further on.
inline void add_to_sums(double* sums, int64_t lost, Vec<double> v) {
  Vec<double> sum = load(sums), rest = load(sums + lost);
  two_sum(sum, rest, v);
  store(sums, sum);
  store(sums + lost, rest);
}

inline void add_to_sums(double* sums, int64_t, Vec<float> v) {
  typedef float Half __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  for (int64_t n = 0; n < 2; ++n) {
    double* to = sums + n * lanes<double>;
    store(to, load(to) + __builtin_convertvector(halves[n], Vec<double>));
  }
}

// Reduces dbias and dpeephole over the sums of all threads, in a fixed order.
template <class scalar_t>
void reduce_sums(const Backward<scalar_t>& args, const Team& team) {
  const Slice all = whole(team);
  all.sync();  // sums of all threads
  for (int64_t k = 0; k < 7; ++k)
    for (int64_t j = all.begin(args.H); j < all.end(args.H); ++j) {
      double sum = 0, lost = 0;
      for (int thread = 0; thread < team.size; ++thread) {
        const double* own = args.sums + (thread * 14 + k) * args.width + j;
        two_sum(sum, lost, own[0]);
        lost += own[7 * args.width];
      }
      if (lost == lost) sum += lost;  // NaN where a sum is infinite
      const Vec<scalar_t> value = broadcast(static_cast<acc_t<scalar_t>>(sum));
      store(k < 4 ? args.dbias + k * args.H + j : args.dpeephole + (k - 4) * args.H + j, value, 1);
    }
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
