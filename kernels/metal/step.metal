// The step kernels, for every size and option: one dispatch is one time step. A threadgroup of four
// simdgroups makes BB rows by 8 columns of a product with 8 x 8 matrices; the cell is its epilogue.

// Sums of BB rows by 8 columns; each simdgroup has one.
struct Tile {
  simdgroup_matrix<real, 8, 8> sums[BB / 8];
};

inline void clear(thread Tile& tile) {
  for (int r = 0; r < BB / 8; ++r) {
    tile.sums[r] = make_filled_simdgroup_matrix<real, 8, 8>(real(0));
  }
}

// tile += left [BB, k] right [k, 8] for every `by`-th block of 8 terms k within [from, to). TRANSPOSED: right
// is stored as [8, k].
template <bool TRANSPOSED>
inline void multiply(thread Tile& tile, device const scalar* left, long left_stride,
                     device const scalar* right, long right_stride, long from, long to, long by) {
  for (long k = from; k < to; k += by) {
    simdgroup_matrix<scalar, 8, 8> b;
    simdgroup_load(b, right + (TRANSPOSED ? k : k * right_stride), right_stride, ulong2(0, 0), TRANSPOSED);
    for (int r = 0; r < BB / 8; ++r) {
      simdgroup_matrix<scalar, 8, 8> a;
      simdgroup_load(a, left + 8 * r * left_stride + k, left_stride);
      simdgroup_multiply_accumulate(tile.sums[r], a, b, tile.sums[r]);
    }
  }
}

// Put a simdgroup's sums where all threads see them, after a barrier.
inline void share(thread Tile& tile, threadgroup real* shared) {
  for (int r = 0; r < BB / 8; ++r) {
    simdgroup_store(tile.sums[r], shared + 64 * r, 8);
  }
}

// The sum over the simdgroups' shares of one element.
inline real total(threadgroup const real* shared, uint element) {
  const uint SIZE = BB * 8;
  return (shared[element] + shared[SIZE + element]) +
         (shared[2 * SIZE + element] + shared[3 * SIZE + element]);
}

// Groups are [row tiles, column tiles]; N columns, rounded up to 8.
inline long first_row(uint group, long N) { return long(group) / (N / 8) * BB; }

inline long first_col(uint group, long N) { return long(group) % (N / 8) * 8; }

// Simdgroup n multiplies h by gate n's rows of W_hh.
inline void recurrent_product(constant Layer& layer, constant Step& step, device const scalar* operand,
                              device const scalar* weight_hh, long row, long col, uint gate,
                              threadgroup real* shared) {
  Tile tile;
  clear(tile);
  multiply<true>(tile, operand + (step.parity * layer.B8 + row) * layer.P8, layer.P8,
                 weight_hh + (gate * layer.H8 + col) * layer.P8, layer.P8, 0, layer.P8, 8);
  share(tile, shared);
}

// h, c and the gates of one step.
[[max_total_threads_per_threadgroup(128)]]
kernel void forward_step(
    constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
    device const real* xw [[buffer(2)]],
    device const scalar* weight_hh [[buffer(3)]],  // [4, H8, P8], padded with zeros
    device const scalar* peephole [[buffer(4)]], device const long* lengths [[buffer(5)]],
    device scalar* operand [[buffer(6)]],  // [2, B8, P8], padded with zeros: h times its mask
    device scalar* h [[buffer(7)]], device real* c [[buffer(8)]], device scalar* y [[buffer(9)]],
    device real* c_all [[buffer(10)]], device scalar* gates_all [[buffer(11)]],
    device const scalar* h_mask [[buffer(12)]], device const scalar* zoneout_h [[buffer(13)]],
    device const scalar* zoneout_c [[buffer(14)]], device const real* clip [[buffer(15)]],
    device scalar* m [[buffer(16)]],           // [B8, H8], padded with zeros, with a projection: o * tanh(c)
    device const real* normed [[buffer(17)]],  // [B, 4H], with layer norm: in place of the product
    uint group [[threadgroup_position_in_grid]], uint lane [[thread_position_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup real shared[4][BB * 8];
  Forward f = {xw, peephole, lengths, h, c, y, c_all, gates_all, h_mask, zoneout_h, zoneout_c, clip};
  long row = first_row(group, layer.H8), col = first_col(group, layer.H8);
  if (layer.norm == 0) {
    recurrent_product(layer, step, operand, weight_hh, row, col, simd, shared[simd]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint element = lane; element < BB * 8; element += 128) {
    long b = row + element / 8, n = col + element % 8;
    if (b < layer.B && n < layer.H) {
      real sums[4];
      for (int gate = 0; gate < 4; ++gate) {
        sums[gate] = layer.norm != 0 ? normed[(b * 4 + gate) * layer.H + n] : shared[gate][element];
      }
      real value = cell_forward(f, layer, step.t, b, n, sums);
      if (layer.projection != 0) {
        m[b * layer.H8 + n] = scalar(value);
      } else {
        operand[((1 - step.parity) * layer.B8 + b) * layer.P8 + n] = store_h(f, layer, step.t, b, n, value);
      }
    }
  }
}

// h = W_hr m; each simdgroup sums a quarter of the terms.
[[max_total_threads_per_threadgroup(128)]]
kernel void project_step(constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
                         device const scalar* m [[buffer(2)]],          // [B8, H8]
                         device const scalar* weight_hr [[buffer(3)]],  // [P8, H8], padded with zeros
                         device const long* lengths [[buffer(4)]], device scalar* operand [[buffer(5)]],
                         device scalar* h [[buffer(6)]], device scalar* y [[buffer(7)]],
                         device const scalar* h_mask [[buffer(8)]],
                         device const scalar* zoneout_h [[buffer(9)]],
                         uint group [[threadgroup_position_in_grid]],
                         uint lane [[thread_position_in_threadgroup]],
                         uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup real shared[4][BB * 8];
  Forward f = {nullptr, nullptr, lengths, h,         nullptr, y,
               nullptr, nullptr, h_mask,  zoneout_h, nullptr, nullptr};
  long row = first_row(group, layer.P8), col = first_col(group, layer.P8);
  Tile tile;
  clear(tile);
  multiply<true>(tile, m + row * layer.H8, layer.H8, weight_hr + col * layer.H8, layer.H8, simd * 8, layer.H8,
                 32);
  share(tile, shared[simd]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint element = lane; element < BB * 8; element += 128) {
    long b = row + element / 8, n = col + element % 8;
    if (b < layer.B && n < layer.P) {
      operand[((1 - step.parity) * layer.B8 + b) * layer.P8 + n] =
          store_h(f, layer, step.t, b, n, total(&shared[0][0], element));
    }
  }
}

// W_hh h_{t-1} alone, for layer norm.
[[max_total_threads_per_threadgroup(128)]]
kernel void recurrent_step(constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
                           device const scalar* weight_hh [[buffer(2)]],
                           device const scalar* operand [[buffer(3)]],
                           device real* hw [[buffer(4)]],  // [B, 4H]
                           uint group [[threadgroup_position_in_grid]],
                           uint lane [[thread_position_in_threadgroup]],
                           uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup real shared[4][BB * 8];
  long row = first_row(group, layer.H8), col = first_col(group, layer.H8);
  recurrent_product(layer, step, operand, weight_hh, row, col, simd, shared[simd]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint element = lane; element < BB * 8; element += 128) {
    long b = row + element / 8, n = col + element % 8;
    if (b < layer.B && n < layer.H) {
      for (int gate = 0; gate < 4; ++gate) {
        hw[(b * 4 + gate) * layer.H + n] = shared[gate][element];
      }
    }
  }
}

// da of one step, and dc of the step before it in time. A plain layer's product is da W_hh of the step
// processed before, where simdgroup n multiplies gate n's terms; a projection's is dh_t W_hr of this step.
[[max_total_threads_per_threadgroup(128)]]
kernel void backward_step(
    constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
    device const scalar* weight [[buffer(2)]],  // W_hh as in forward_step, or W_hr as in project_step
    device const scalar* dy [[buffer(3)]], device const real* c_all [[buffer(4)]],
    device const scalar* c0 [[buffer(5)]], device const scalar* gates_all [[buffer(6)]],
    device const scalar* peephole [[buffer(7)]], device const long* lengths [[buffer(8)]],
    device scalar* dxw [[buffer(9)]],
    device scalar* operand [[buffer(10)]],  // [2, B8, 4, H8], padded with zeros: da
    device real* dh [[buffer(11)]], device real* dc [[buffer(12)]], device real* kept [[buffer(13)]],
    device const scalar* h_mask [[buffer(14)]], device const scalar* zoneout_h [[buffer(15)]],
    device const scalar* zoneout_c [[buffer(16)]], device const real* clip [[buffer(17)]],
    device const scalar* dh_t [[buffer(18)]],  // [B8, P8], with a projection
    uint group [[threadgroup_position_in_grid]], uint lane [[thread_position_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup real shared[4][BB * 8];
  Backward back = {dy, c_all, c0,   gates_all, peephole,  lengths,   dxw,
                   dh, dc,    kept, h_mask,    zoneout_h, zoneout_c, clip};
  long row = first_row(group, layer.H8), col = first_col(group, layer.H8), H8 = layer.H8;
  Tile tile;
  clear(tile);
  if (layer.projection != 0) {
    multiply<false>(tile, dh_t + row * layer.P8, layer.P8, weight + col, H8, simd * 8, layer.P8, 32);
  } else {
    multiply<false>(tile, operand + ((step.parity * layer.B8 + row) * 4 + simd) * H8, 4 * H8,
                    weight + simd * H8 * layer.P8 + col, layer.P8, 0, H8, 8);
  }
  share(tile, shared[simd]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint element = lane; element < BB * 8; element += 128) {
    long b = row + element / 8, n = col + element % 8;
    if (b < layer.B && n < layer.H) {
      real dm = total(&shared[0][0], element);
      if (layer.projection == 0) {
        dm = h_gradient(back, layer, step.t, step.after, b, n, dm);
      }
      if (step.t >= 0) {
        scalar da[4];
        cell_backward(back, layer, step.t, step.before, b, n, dm, da);
        for (int gate = 0; gate < 4 && layer.norm == 0; ++gate) {
          operand[(((1 - step.parity) * layer.B8 + b) * 4 + gate) * H8 + n] = da[gate];
        }
      }
    }
  }
}

// d loss / d h of one step with a projection, from da of the step processed before.
[[max_total_threads_per_threadgroup(128)]]
kernel void gradient_step(constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
                          device const scalar* weight_hh [[buffer(2)]],
                          device const scalar* operand [[buffer(3)]], device const scalar* dy [[buffer(4)]],
                          device const long* lengths [[buffer(5)]], device real* dh [[buffer(6)]],
                          device real* kept [[buffer(7)]], device const scalar* h_mask [[buffer(8)]],
                          device const scalar* zoneout_h [[buffer(9)]],
                          device scalar* dh_t [[buffer(10)]],  // [B8, P8], padded with zeros
                          uint group [[threadgroup_position_in_grid]],
                          uint lane [[thread_position_in_threadgroup]],
                          uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup real shared[4][BB * 8];
  Backward back = {dy, nullptr, nullptr, nullptr, nullptr,   lengths, nullptr,
                   dh, nullptr, kept,    h_mask,  zoneout_h, nullptr, nullptr};
  long row = first_row(group, layer.P8), col = first_col(group, layer.P8), H8 = layer.H8;
  Tile tile;
  clear(tile);
  multiply<false>(tile, operand + ((step.parity * layer.B8 + row) * 4 + simd) * H8, 4 * H8,
                  weight_hh + simd * H8 * layer.P8 + col, layer.P8, 0, H8, 8);
  share(tile, shared[simd]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint element = lane; element < BB * 8; element += 128) {
    long b = row + element / 8, n = col + element % 8;
    if (b < layer.B && n < layer.P) {
      real d = h_gradient(back, layer, step.t, step.after, b, n, total(&shared[0][0], element));
      dh_t[b * layer.P8 + n] = scalar(d);
    }
  }
}
