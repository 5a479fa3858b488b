// What programs can hand each other in a step of an LSTM, without any arithmetic: each stores its slice of h,
// and goes on once it has everyone's. Through L2, by a counter or by a flag in the data; within a cluster,
// from shared memory to shared memory. Nothing waits forever.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

namespace cg = cooperative_groups;

constexpr int kSteps = 2000, kThreads = 128;
constexpr unsigned kEmpty = 0x7fc07fc1;  // two NaN that no program stores
constexpr int kPatience = 1 << 20;       // polls

__device__ bool hung;

__device__ uint4 load_volatile(const uint4* p) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

__device__ bool empty(uint4 v) { return v.x == kEmpty || v.y == kEmpty || v.z == kEmpty || v.w == kEmpty; }

__global__ void fill(uint4* h, size_t words) {
  for (size_t k = blockIdx.x * blockDim.x + threadIdx.x; k < words; k += gridDim.x * blockDim.x) {
    h[k] = make_uint4(kEmpty, kEmpty, kEmpty, kEmpty);
  }
}

// Two buffers in turn. A program arrives at the counter behind its store, and loads once all have.
__global__ void by_counter(uint4* h, unsigned* counter, int words, unsigned* sink) {
  const int mine = words / gridDim.x;
  unsigned sum = threadIdx.x;
  for (int t = 0; t < kSteps; ++t) {
    uint4* now = h + (t & 1) * words;
    for (int k = threadIdx.x; k < mine; k += kThreads) now[blockIdx.x * mine + k] = make_uint4(sum, t, t, t);
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      const unsigned wanted = (t + 1) * gridDim.x;
      unsigned seen = 0;
      for (int poll = 0; seen < wanted && poll < kPatience; ++poll) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      }
      if (seen < wanted) hung = true;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < words; k += kThreads) sum += __ldcg(now + k).x;
  }
  sink[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// A fresh slot for each step, empty beforehand. Who finds it so loads again.
__global__ void by_flag(uint4* h, unsigned*, int words, unsigned* sink) {
  const int mine = words / gridDim.x;
  unsigned sum = threadIdx.x;
  for (int t = 0; t < kSteps; ++t) {
    uint4* now = h + static_cast<size_t>(t) * words;
    const unsigned v = sum & 0x3f803f80;
    for (int k = threadIdx.x; k < mine; k += kThreads) now[blockIdx.x * mine + k] = make_uint4(v, v, v, v);
    for (int k = threadIdx.x; k < words; k += kThreads) {
      uint4 got = load_volatile(now + k);
      for (int poll = 0; empty(got) && poll < kPatience; ++poll) got = load_volatile(now + k);
      if (empty(got)) hung = true;
      sum += got.x + got.w;
    }
    if (*static_cast<volatile bool*>(&hung)) break;
    __syncthreads();  // as before a product
  }
  sink[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Each program sends its slice to all of its cluster, and waits at a barrier of its own for all bytes to be
// there.
template <int kPrograms, int kBytes>
__global__ void in_cluster(unsigned* sink) {
  extern __shared__ __align__(128) unsigned char h[];  // [2][kPrograms * kBytes]
  __shared__ __align__(8) uint64_t barriers[2];
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  const unsigned first = static_cast<unsigned>(__cvta_generic_to_shared(barriers));
  const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(h));
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(first));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(first + 8));
  }
  asm volatile("fence.mbarrier_init.release.cluster;");
  cg::this_cluster().sync();
  unsigned sum = threadIdx.x;
  for (int t = 0; t < kSteps; ++t) {
    const unsigned buffer = t & 1, barrier = first + 8 * buffer, phase = t >> 1 & 1;
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(kPrograms * kBytes)
                   : "memory");
    }
    for (unsigned k = threadIdx.x; k < kPrograms * kBytes / 16; k += kThreads) {
      const unsigned to = k / (kBytes / 16), word = k % (kBytes / 16);
      const unsigned place = base + buffer * kPrograms * kBytes + rank * kBytes + 16 * word;
      unsigned there, its_barrier;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(to));
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(its_barrier) : "r"(barrier), "r"(to));
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %1, %1, %1}, [%2];" ::
              "r"(there),
          "r"(sum), "r"(its_barrier)
          : "memory");
    }
    unsigned done = 0;
    for (int poll = 0; !done && poll < kPatience; ++poll) {
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 "
          "%0, 1, 0, "
          "p; }"
          : "=r"(done)
          : "r"(barrier), "r"(phase)
          : "memory");
    }
    if (!done) hung = true;
    sum += *reinterpret_cast<volatile unsigned*>(h + buffer * kPrograms * kBytes +
                                                 16 * threadIdx.x % (kPrograms * kBytes));
    __syncthreads();
  }
  sink[blockIdx.x * kThreads + threadIdx.x] = sum;
  cg::this_cluster().sync();
}

// The microseconds of an exchange: the best of three launches.
template <class Launch>
void report(const char* what, int programs, int bytes, Launch launch) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float best = 1e9f;
  cudaError_t error = cudaSuccess;
  for (int turn = 0; turn < 3 && error == cudaSuccess; ++turn) {
    error = launch(begin);
    cudaEventRecord(end);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    float took = 0;
    if (error == cudaSuccess) error = cudaEventElapsedTime(&took, begin, end);
    if (took < best) best = took;
  }
  bool gave_up = false;
  cudaMemcpyFromSymbol(&gave_up, hung, sizeof(gave_up));
  std::printf("%-10s %3d programs, %4d bytes each: ", what, programs, bytes);
  if (error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(error));
    cudaGetLastError();
  } else {
    std::printf("%s%.3f us\n", gave_up ? "GAVE UP " : "", 1e3 * best / kSteps);
  }
  std::fflush(stdout);
}

template <class Kernel>
void through_l2(const char* what, Kernel kernel, int slots, int programs) {
  const int bytes = 256;  // of 16 rows and 8 columns
  int words = programs * bytes / 16;
  uint4* h;
  unsigned *counter, *sink;
  cudaMalloc(&h, sizeof(uint4) * words * slots);
  cudaMalloc(&counter, sizeof(unsigned));
  cudaMalloc(&sink, sizeof(unsigned) * kThreads * programs);
  report(what, programs, bytes, [&](cudaEvent_t begin) {
    cudaMemset(counter, 0, sizeof(unsigned));
    fill<<<256, 256>>>(h, static_cast<size_t>(words) * slots);
    cudaEventRecord(begin);
    void* arguments[] = {&h, &counter, &words, &sink};
    return cudaLaunchCooperativeKernel(reinterpret_cast<void*>(kernel), dim3(programs), dim3(kThreads),
                                       arguments, 0, 0);
  });
  cudaFree(h);
  cudaFree(counter);
  cudaFree(sink);
}

template <int kPrograms, int kBytes>
void through_shared(int clusters) {
  auto kernel = in_cluster<kPrograms, kBytes>;
  unsigned* sink;
  cudaMalloc(&sink, sizeof(unsigned) * kThreads * kPrograms * clusters);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kPrograms, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = kPrograms * clusters;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = 2 * kPrograms * kBytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 2 * kPrograms * kBytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  int most = 0;
  cudaOccupancyMaxActiveClusters(&most, kernel, &config);
  std::printf("clusters of %d: %d of %d on the card at once\n", kPrograms, clusters, most);
  report("cluster", kPrograms, kBytes, [&](cudaEvent_t begin) {
    cudaEventRecord(begin);
    return cudaLaunchKernelEx(&config, kernel, sink);
  });
  cudaFree(sink);
}

}  // namespace

int main() {
  for (int programs : {16, 32, 64, 96, 128}) {
    through_l2("counter", by_counter, 2, programs);
    through_l2("flag", by_flag, kSteps, programs);
  }
  through_shared<8, 1024>(1);
  through_shared<8, 1024>(8);
  through_shared<16, 1024>(1);
  through_shared<16, 1024>(6);
  through_shared<16, 2048>(1);
}
