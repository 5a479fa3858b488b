// Packs weights in the order in which the micro-kernels read them: panels [K, NR], of bfloat16 in VNNI
// pairs, zero past K and past the last channel.
#pragma once

#include "gemm/microkernel.h"

namespace lstm_fused::LSTM_FUSED_ISA {

// A square of lanes × lanes weights: lane j of row[k] is weights[j * n_stride + k * k_stride], zero for j
// >= n and k >= K. One of the strides is 1.
template <class Real>
struct TransposedBlock {
  Vec<Real> row[lanes<Real>];

  TransposedBlock(const Real* weights, int64_t n_stride, int64_t k_stride, int64_t n, int64_t K) {
    constexpr int64_t L = lanes<Real>;
    if (n_stride == 1) {
      for (int64_t k = 0; k < L; ++k) row[k] = k < K && n > 0 ? load(weights + k * k_stride, n) : Vec<Real>{};
      return;
    }
    if (n >= L && K >= L) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < L; ++j) {
        row[j] = load(weights + j * n_stride);
        // Hardware sees so many rows, which advance together, too late.
        __builtin_prefetch(reinterpret_cast<const char*>(weights + j * n_stride) + pack_prefetch_bytes);
      }
    } else {
      for (int64_t j = 0; j < L; ++j) row[j] = j < n && K > 0 ? load(weights + j * n_stride, K) : Vec<Real>{};
    }
    transpose<Real>(row);
  }
};

// Packs one of the two vectors of a panel: n channels by K.
template <class Real>
inline void pack_vector(const Real* weights, int64_t n_stride, int64_t k_stride, int64_t n, int64_t K,
                        Real* to) {
  if (n_stride == 1) {
    for (int64_t k = 0; k < K; ++k)
      store(to + k * NR<Real>, n > 0 ? load(weights + k * k_stride, n) : Vec<Real>{});
    return;
  }
  for (int64_t first = 0; first < K; first += lanes<Real>) {
    const TransposedBlock<Real> block(weights + first * k_stride, n_stride, k_stride, n, K - first);
    for (int64_t k = first; k < min(first + lanes<Real>, K); ++k)
      store(to + k * NR<Real>, block.row[k - first]);
  }
}

// The same in VNNI pairs, each of which moves as one float does.
inline void pack_vector(const BFloat16* weights, int64_t n_stride, int64_t k_stride, int64_t n, int64_t K,
                        BFloat16* to) {
  constexpr int64_t L = lanes<BFloat16>, group = 2 * NR<BFloat16>;
  const int64_t k_groups = padded_k<BFloat16>(K) / 2;
  if (n_stride == 1 && n >= L) {
    for (int64_t u = 0; u < k_groups; ++u)
      store_vnni_pairs(to + u * group, weights + 2 * u * k_stride, k_stride, K - 2 * u);
    return;
  }
  for (int64_t first = 0; first < k_groups; first += L) {
    if (n >= L && K - 2 * first >= 2 * L && k_stride == 1) {
      Vec<float> block[L];
      for (int64_t j = 0; j < L; ++j)
        __builtin_memcpy(block + j, weights + j * n_stride + 2 * first, sizeof *block);
      transpose<float>(block);
      for (int64_t u = 0; u < L; ++u) __builtin_memcpy(to + (first + u) * group, block + u, sizeof *block);
      continue;
    }
    for (int64_t j = 0; j < L; ++j)
      for (int64_t u = first; u < min(first + L, k_groups); ++u)
        for (int64_t k = 2 * u; k < 2 * u + 2; ++k)
          to[u * group + 2 * j + k % 2] = j < n && k < K ? weights[j * n_stride + k * k_stride] : BFloat16{};
  }
}

// Two vectors of bfloat16 as VNNI pairs.
inline Bits vnni_pairs(Vec<float> even, Vec<float> odd) { return (Bits)even >> 16 | (Bits)odd; }

// Stores them, the first n.
inline void store_pairs(Vec<float> even, Vec<float> odd, BFloat16* to, int64_t n = lanes<float>) {
  const Bits pairs = vnni_pairs(even, odd);
  if (n >= lanes<float>)
    __builtin_memcpy(to, &pairs, sizeof pairs);
  else
    __builtin_memcpy(to, &pairs, static_cast<size_t>(n) * sizeof(uint32_t));
}

// Packs W [4H, K] into two panels for each vector of channels, i and f, g and o; vectors [first, last) only.
template <class scalar_t>
void pack_gates(const scalar_t* W, int64_t H, int64_t K, int64_t first, int64_t last, scalar_t* packed) {
  const int64_t panel_stride = padded_k<scalar_t>(K) * NR<scalar_t>,
                vector = lanes<scalar_t> * k_pack<scalar_t>;
  for (int64_t n = first; n < last; ++n)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t j = n * lanes<scalar_t>;
      pack_vector(W + (gate * H + j) * K, K, 1, H - j, K,
                  packed + (gate_panels * n + gate / 2) * panel_stride + gate % 2 * vector);
    }
}

// Packs the weights W[n * n_stride + k * k_stride] of N channels by K; panels [first, last) only.
template <class scalar_t>
void pack_channels(const scalar_t* W, int64_t n_stride, int64_t k_stride, int64_t N, int64_t K, int64_t first,
                   int64_t last, scalar_t* packed) {
  const int64_t panel_stride = padded_k<scalar_t>(K) * NR<scalar_t>,
                vector = lanes<scalar_t> * k_pack<scalar_t>;
  for (int64_t p = first; p < last; ++p)
    for (int64_t v = 0; v < 2; ++v) {
      const int64_t j = p * NR<scalar_t> + v * lanes<scalar_t>;
      pack_vector(W + j * n_stride, n_stride, k_stride, N - j, K, packed + p * panel_stride + v * vector);
    }
}

// Packs rows that lie apart, row(k) for k in [first, last), as k of panels: columns [0, N), zero for other
// columns of the last panel and for k >= K. `first` is a multiple of an AMX tile's depth.
template <class scalar_t, class RowAt>
void pack_rows(RowAt row, int64_t N, int64_t first, int64_t last, int64_t K, scalar_t* packed) {
  const int64_t panel_stride = padded_k<scalar_t>(K) * NR<scalar_t>;
  const int64_t vectors = 2 * ceil_div(N, NR<scalar_t>);
  const auto load_row = [&](int64_t k, int64_t j) {
    if (j < N && k + product_prefetch_distance < K)
      __builtin_prefetch(row(k + product_prefetch_distance) + j);
    return j < N && k < K ? load(row(k) + j, N - j) : Vec<scalar_t>{};
  };
  for (int64_t k = first; k < last; k += k_pack<scalar_t>)
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t j = v * lanes<scalar_t>, at = v % 2 * lanes<scalar_t>;
      scalar_t* panel = packed + v / 2 * panel_stride;
      if constexpr (k_pack<scalar_t> == 1)
        store(panel + k * NR<scalar_t> + at, load_row(k, j));
      else
        store_pairs(load_row(k, j), load_row(k + 1, j), panel + k * NR<scalar_t> + 2 * at);
    }
}

// Packs columns of a row, k or a VNNI pair k and k + 1, into k-major panels [K, width], whose k-groups lie
// side by side as in packed weights. A store may reach into the following k, which are packed later; `left`
// is the number of elements, or pairs, to the end of the panel, `readable` the columns to the end of the row.
template <class scalar_t>
inline void pack_k_major(const scalar_t* even, const scalar_t* odd, int64_t width, int64_t readable,
                         int64_t left, scalar_t* to) {
  for (int64_t j = 0; j < width; j += lanes<scalar_t>) {
    const Vec<scalar_t> low = load(even + j, readable - j);
    if constexpr (k_pack<scalar_t> == 1)
      store(to + j, low, left - j);
    else
      store_pairs(low, odd ? load(odd + j, readable - j) : Vec<scalar_t>{}, to + 2 * j, left - j);
  }
}

// The packed weights that multiply rows of the buffer.
template <class scalar_t>
PackedWeights<scalar_t> packed_for(const OperandBuffer<scalar_t>& rows, const scalar_t* weights) {
  return {weights, ceil_div(rows.K, k_pack<scalar_t>), padded_k<scalar_t>(rows.K) * NR<scalar_t>};
}

// The same of W [K, N] itself, for few rows; N is a multiple of NR.
template <class scalar_t>
PackedWeights<scalar_t> unpacked(const scalar_t* W, int64_t K, int64_t N) {
  return {W, K, NR<scalar_t>, N};
}

}  // namespace lstm_fused::LSTM_FUSED_ISA
