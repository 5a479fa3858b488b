// Small kernels, one for each thing that the emulation has to do as Metal does it.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// Functions of one number: out [13, n].
kernel void functions(device const float* x [[buffer(0)]], device float* out [[buffer(1)]], constant uint& n [[buffer(2)]],
                      uint i [[thread_position_in_grid]]) {
  if (i >= n) {
    return;
  }
  float v = x[i];
  float results[13] = {precise::exp(v), precise::tanh(v), precise::log(fabs(v)), precise::sqrt(fabs(v)),
                       rsqrt(fabs(v)), abs(v), sign(v), fma(v, v, 1.0f), clamp(v, -1.0f, 1.0f), max(v, 0.25f),
                       min(v, 0.25f), select(v, 2.0f, v > 0.0f), precise::divide(1.0f, v)};
  for (uint k = 0; k < 13; k++) {
    out[k * n + i] = results[k];
  }
}

kernel void fast_tanh(device const float* x, device float* out, uint i [[thread_position_in_grid]]) { out[i] = tanh(x[i]); }

// Rounding of a, b and a + b, a - b, a * b, a / b: out [6, n].
template <typename T>
kernel void arithmetic(device const float* a, device const float* b, device T* out, constant long& n,
                       uint i [[thread_position_in_grid]]) {
  T x = T(a[i]), y = T(b[i]);
  out[i] = x;
  out[n + i] = y;
  out[2 * n + i] = x + y;
  out[3 * n + i] = x - y;
  out[4 * n + i] = x * y;
  T quotient = x;
  quotient /= y;
  out[5 * n + i] = quotient;
}
#define ARITHMETIC(T)                               \
  template [[host_name("arithmetic_" #T)]] kernel void \
  arithmetic<T>(device const float*, device const float*, device T*, constant long&, uint);
ARITHMETIC(half)
ARITHMETIC(bfloat)

// Operations of a simdgroup: out [12, n].
kernel void lanes(device const float* x, device float* out, constant int& n, uint i [[thread_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]]) {
  float v = x[i];
  out[i] = simd_sum(v);
  out[n + i] = simd_max(v);
  out[2 * n + i] = simd_min(v);
  out[3 * n + i] = simd_shuffle(v, ushort(31 - lane));
  out[4 * n + i] = simd_shuffle_xor(v, 5);
  out[5 * n + i] = simd_shuffle_up(v, 3);
  out[6 * n + i] = simd_shuffle_down(v, 3);
  out[7 * n + i] = simd_broadcast(v, 7);
  out[8 * n + i] = simd_any(v > 2.0f) ? 1.0f : 0.0f;
  out[9 * n + i] = simd_all(v > -1.0f) ? 1.0f : 0.0f;
  out[10 * n + i] = simd_prefix_inclusive_sum(v);
  out[11 * n + i] = simd_prefix_exclusive_sum(v);
}

// c = a b^T + diagonal, with b [n, n] loaded transposed; four simdgroups a threadgroup, through threadgroup memory.
template <typename T, int SIMDGROUPS>
[[max_total_threads_per_threadgroup(32 * 4)]] kernel void product(
    device const T* a [[buffer(0)]], device const T* b [[buffer(1)]], device float* c [[buffer(2)]],
    constant long& n [[buffer(4)]], constant float& diagonal [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[SIMDGROUPS][8 * 8], other[2];
  long row = group.y * 8, col = (group.x * SIMDGROUPS + simdgroup) * 8;
  simdgroup_matrix<float, 8, 8> sums = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  if (row == col) {
    sums = simdgroup_matrix<float, 8, 8>(diagonal);
  }
  for (long k = 0; k < n; k += 8) {
    simdgroup_matrix<T, 8, 8> left, right;
    simdgroup_load(left, a, n, ulong2(k, row));
    simdgroup_load(right, b + col * n + k, n, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sums, left, right, sums);
  }
  simdgroup_store(sums, &tile[simdgroup][0]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup = (simdgroup + 1) % SIMDGROUPS;
  col = (group.x * SIMDGROUPS + simdgroup) * 8;
  for (uint i = lane; i < 64; i += 32) {
    c[(row + i / 8) * n + col + i % 8] = tile[simdgroup][i];
  }
  if (n < 0) {
    other[0] = 0.0f;
  }
}
template [[host_name("product_float")]] [[kernel]] void product<float, 4>(
    device const float*, device const float*, device float*, constant long&, constant float&, uint2, uint, uint);
template [[host_name("product_bfloat")]] kernel decltype(product<bfloat, 4>) product<bfloat, 4>;

// Where threads are: out [threads, 16].
kernel void positions(device uint* out, uint3 grid [[threads_per_grid]], uint3 at [[thread_position_in_grid]],
                      ushort3 in_group [[thread_position_in_threadgroup]], uint3 group [[threadgroup_position_in_grid]],
                      uint3 size [[threads_per_threadgroup]], uint index [[thread_index_in_threadgroup]],
                      ushort lane [[thread_index_in_simdgroup]]) {
  device uint* mine = out + 16 * ((at.z * grid.y + at.y) * grid.x + at.x);
  mine[0] = at.x, mine[1] = at.y, mine[2] = at.z;
  mine[3] = in_group.x, mine[4] = in_group.y, mine[5] = in_group.z;
  mine[6] = group.x, mine[7] = group.y, mine[8] = group.z;
  mine[9] = size.x, mine[10] = size.y, mine[11] = size.z;
  mine[12] = index, mine[13] = lane;
}

struct Record {
  long a, b;
};

// Numbers as PyTorch passes them.
kernel void numbers(device float* out, constant long& integer, constant float& real, constant int& narrow,
                    constant Record& record, constant half& small, constant float* list,
                    uint i [[thread_position_in_grid]]) {
  float values[8] = {float(integer), real, float(narrow), float(record.a), float(record.b), small, list[0], list[1]};
  out[i] = values[i];
}

kernel void poisoned(device float* out, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float shared[40];
  simdgroup_matrix<float, 8, 8> fresh;
  if (i == 0) {
    shared[1] = 5.0f;
  }
  simdgroup_store(fresh, out + 64);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[i];
}

// Reversed in place, through device memory; `flags` has what the barrier orders.
template <int FLAGS>
kernel void reversed(device float* x, uint i [[thread_position_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  float mine = x[n - 1 - i];
  threadgroup_barrier(mem_flags(FLAGS));
  x[i] = mine;
}
template [[host_name("reversed")]] kernel void reversed<1>(device float*, uint, uint);
template [[host_name("reversed_badly")]] kernel void reversed<2>(device float*, uint, uint);

// Within a simdgroup no threadgroup_barrier is needed.
kernel void rotated(device float* x, uint i [[thread_position_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup half shared[64];
  shared[i] = half(x[i]);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  x[i] = shared[i / 32 * 32 + (lane + 1) % 32];
}

// Every threadgroup adds to the same numbers.
kernel void added(device float* x, uint i [[thread_position_in_threadgroup]]) { x[i] += 1.0f; }

kernel void past_the_end(device float* x, device float* y, constant int& more, uint i [[thread_position_in_grid]]) {
  y[i] = x[i + more];
}

kernel void past_shared(device float* x, constant int& more, uint i [[thread_position_in_grid]]) {
  threadgroup float shared[32], next[32];
  shared[i] = x[i];
  next[i] = 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* all = shared;
  x[i] = all[i + more] + next[i];
}

kernel void greedy(device float* x, uint i [[thread_position_in_grid]]) {
  threadgroup float shared[8193];
  shared[i] = 0.0f;
  x[i] = shared[i];
}

// Where threads do not stay together.
kernel void diverging(device float* x, constant int& how, uint i [[thread_position_in_threadgroup]]) {
  if (how == 0 && i < 7) {
    x[i] = simd_sum(x[i]);
  } else if (how == 1 && i < 32) {
    threadgroup_barrier(mem_flags::mem_none);
  } else if (how == 2) {
    if (i < 32) {
      threadgroup_barrier(mem_flags::mem_none);
    } else {
      threadgroup_barrier(mem_flags::mem_none);
    }
  } else if (how == 3) {
    if (i < 40) {
      simdgroup_matrix<float, 8, 8> m;
      simdgroup_load(m, x);
    }
  }
}
