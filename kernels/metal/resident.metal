// The resident kernels: one dispatch for many steps, for H up to WIDTH. A threadgroup owns 8 rows of the
// batch, and each of its simdgroups 8 channels, so no threadgroup needs what another computes. Plain layers
// only.

// The steps of a pass that a dispatch runs, counted in the order of processing: from `begin` to before `end`.
// h, c and their gradients pass from one dispatch to the next in device memory. `Span` in dispatches.py.
struct Span {
  long begin, end;
};

[[max_total_threads_per_threadgroup(4 * WIDTH)]]
kernel void forward_resident(constant Layer& layer [[buffer(0)]], constant Span& span [[buffer(1)]],
                             device const real* xw [[buffer(2)]],
                             device const scalar* weight_hh [[buffer(3)]],  // [4, H8, H8], padded with zeros
                             device const scalar* peephole [[buffer(4)]],
                             device const long* lengths [[buffer(5)]], device scalar* h [[buffer(6)]],
                             device real* c [[buffer(7)]], device scalar* y [[buffer(8)]],
                             device real* c_all [[buffer(9)]], device scalar* gates_all [[buffer(10)]],
                             uint group [[threadgroup_position_in_grid]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup scalar operand[8 * WIDTH];  // h of 8 rows
  threadgroup real shared[WIDTH / 8][4][64];
  Forward f = {xw, peephole, lengths, h, c, y, c_all, gates_all, nullptr, nullptr, nullptr, nullptr};
  long row = long(group) * 8, col = long(simd) * 8, H8 = layer.H8;
  for (uint element = lane; element < 64; element += 32) {
    long b = row + element / 8, n = col + element % 8;
    bool inside = b < layer.B && n < layer.H;
    operand[element / 8 * WIDTH + n] = inside ? h[b * layer.H + n] : scalar(0);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (long step = span.begin; step < span.end; ++step) {
    long t = layer.reverse != 0 ? layer.T - 1 - step : step;
    simdgroup_matrix<real, 8, 8> sums[4];
    for (int gate = 0; gate < 4; ++gate) {
      sums[gate] = make_filled_simdgroup_matrix<real, 8, 8>(real(0));
    }
    for (long k = 0; k < H8; k += 8) {
      simdgroup_matrix<scalar, 8, 8> left;
      simdgroup_load(left, operand + k, WIDTH);
      for (int gate = 0; gate < 4; ++gate) {
        simdgroup_matrix<scalar, 8, 8> right;
        simdgroup_load(right, weight_hh + (gate * H8 + col) * H8 + k, H8, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sums[gate], left, right, sums[gate]);
      }
    }
    for (int gate = 0; gate < 4; ++gate) {
      simdgroup_store(sums[gate], &shared[simd][gate][0], 8);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint element = lane; element < 64; element += 32) {
      long b = row + element / 8, n = col + element % 8;
      if (b < layer.B && n < layer.H) {
        real a[4];
        for (int gate = 0; gate < 4; ++gate) {
          a[gate] = shared[simd][gate][element];
        }
        real m = cell_forward(f, layer, t, b, n, a);
        operand[element / 8 * WIDTH + n] = store_h(f, layer, t, b, n, m);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// The step that a backward pass processes n-th, or -1 before and after all of them.
inline long step_back(constant Layer& layer, long n) {
  return n < 0 || n >= layer.T ? -1 : (layer.reverse != 0 ? n : layer.T - 1 - n);
}

// From the last step to the first, and one iteration more, which computes the gradient of h0.
[[max_total_threads_per_threadgroup(4 * WIDTH)]]
kernel void backward_resident(constant Layer& layer [[buffer(0)]], constant Span& span [[buffer(1)]],
                              device const scalar* weight_hh [[buffer(2)]],
                              device const scalar* dy [[buffer(3)]], device const real* c_all [[buffer(4)]],
                              device const scalar* c0 [[buffer(5)]],
                              device const scalar* gates_all [[buffer(6)]],
                              device const scalar* peephole [[buffer(7)]],
                              device const long* lengths [[buffer(8)]], device scalar* dxw [[buffer(9)]],
                              device real* dh [[buffer(10)]], device real* dc [[buffer(11)]],
                              uint group [[threadgroup_position_in_grid]],
                              uint lane [[thread_index_in_simdgroup]],
                              uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup scalar operand[8 * 4 * WIDTH];  // da of 8 rows, gate by gate
  threadgroup real shared[WIDTH / 8][64];
  Backward back = {dy, c_all, c0,      gates_all, peephole, lengths, dxw,
                   dh, dc,    nullptr, nullptr,   nullptr,  nullptr, nullptr};
  long row = long(group) * 8, col = long(simd) * 8, H8 = layer.H8;
  long last = step_back(layer, span.begin - 1);
  for (uint element = lane; element < 64; element += 32) {
    long b = row + element / 8, n = col + element % 8;
    bool known = last >= 0 && b < layer.B && n < layer.H;
    for (int gate = 0; gate < 4; ++gate) {
      operand[(element / 8 * 4 + gate) * WIDTH + n] =
          known ? dxw[gate_offset(layer, last, b, n) + gate * layer.H] : scalar(0);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (long step = span.begin; step < span.end; ++step) {
    long t = step_back(layer, step), after = step_back(layer, step - 1), before = step_back(layer, step + 1);
    simdgroup_matrix<real, 8, 8> sums = make_filled_simdgroup_matrix<real, 8, 8>(real(0));
    for (int gate = 0; gate < 4; ++gate) {
      for (long k = 0; k < H8; k += 8) {
        simdgroup_matrix<scalar, 8, 8> left, right;
        simdgroup_load(left, operand + gate * WIDTH + k, 4 * WIDTH);
        simdgroup_load(right, weight_hh + (gate * H8 + k) * H8 + col, H8);
        simdgroup_multiply_accumulate(sums, left, right, sums);
      }
    }
    simdgroup_store(sums, &shared[simd][0], 8);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint element = lane; element < 64; element += 32) {
      long b = row + element / 8, n = col + element % 8;
      if (b < layer.B && n < layer.H) {
        real dm = h_gradient(back, layer, t, after, b, n, shared[simd][element]);
        if (t >= 0) {
          scalar da[4];
          cell_backward(back, layer, t, before, b, n, dm, da);
          for (int gate = 0; gate < 4; ++gate) {
            operand[(element / 8 * 4 + gate) * WIDTH + n] = da[gate];
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}
