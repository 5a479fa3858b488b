// Layer norm of W_hh h_{t-1} over its 4H elements, forward and backward; a simdgroup owns a row.

// Mean, and 1 / deviation, of N elements; 1e-5 as in lstm_fused/reference.py.
inline void statistics(device const real* row, long N, uint lane, thread real& mean, thread real& rstd) {
  real sum = real(0);
  for (long n = lane; n < N; n += 32) {
    sum += row[n];
  }
  mean = precise::divide(simd_sum(sum), real(N));
  real squares = real(0);
  for (long n = lane; n < N; n += 32) {
    real centred = row[n] - mean;
    squares += centred * centred;
  }
  rstd = precise::divide(real(1),
                         precise::sqrt(precise::divide(simd_sum(squares), real(N)) + real(1) / real(100000)));
}

// normed = gain * (hw - mean) / deviation.
[[max_total_threads_per_threadgroup(32)]]
kernel void norm_step(constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
                      device const real* hw [[buffer(2)]],      // [B, 4H]
                      device const scalar* gain [[buffer(3)]],  // [4H]
                      device real* normed [[buffer(4)]],        // [B, 4H]
                      uint group [[threadgroup_position_in_grid]],
                      uint lane [[thread_position_in_threadgroup]]) {
  long N = 4 * layer.H;
  device const real* row = hw + group * N;
  real mean, rstd;
  statistics(row, N, lane, mean, rstd);
  for (long n = lane; n < N; n += 32) {
    normed[group * N + n] = real(gain[n]) * ((row[n] - mean) * rstd);
  }
}

// From da of a step to d loss / d (W_hh h_{t-1}), the operand of the next product.
[[max_total_threads_per_threadgroup(32)]]
kernel void norm_backward_step(constant Layer& layer [[buffer(0)]], constant Step& step [[buffer(1)]],
                               device const scalar* dxw [[buffer(2)]],   // [T, B, 4H]
                               device const real* hw [[buffer(3)]],      // [T, B, 4H]
                               device const scalar* gain [[buffer(4)]],  // [4H]
                               device scalar* dhw [[buffer(5)]],         // [T, B, 4H]
                               device scalar* operand [[buffer(6)]],     // [2, B8, 4, H8]
                               uint group [[threadgroup_position_in_grid]],
                               uint lane [[thread_position_in_threadgroup]]) {
  long N = 4 * layer.H, at = (step.t * layer.B + group) * N;
  real mean, rstd;
  statistics(hw + at, N, lane, mean, rstd);
  real sum = real(0), along = real(0);
  for (long n = lane; n < N; n += 32) {
    real d = real(dxw[at + n]) * real(gain[n]);
    sum += d;
    along += d * ((hw[at + n] - mean) * rstd);
  }
  sum = precise::divide(simd_sum(sum), real(N));
  along = precise::divide(simd_sum(along), real(N));
  for (long n = lane; n < N; n += 32) {
    real d = real(dxw[at + n]) * real(gain[n]);
    scalar found = scalar(rstd * (d - sum - (hw[at + n] - mean) * rstd * along));
    dhw[at + n] = found;
    long gate = n / layer.H, col = n % layer.H;
    operand[(((1 - step.parity) * layer.B8 + group) * 4 + gate) * layer.H8 + col] = found;
  }
}
