// The scalar types of the engine, and the types that accumulate them.
#pragma once

#include <cstdint>

namespace lstm_fused {

struct BFloat16 {
  uint16_t bits;
};

template <class scalar_t>
struct Accumulator {
  using Type = scalar_t;
};

template <>
struct Accumulator<BFloat16> {
  using Type = float;
};

// The type that computes and accumulates what scalar_t stores.
template <class scalar_t>
using acc_t = typename Accumulator<scalar_t>::Type;

}  // namespace lstm_fused
