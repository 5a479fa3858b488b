// What the emulated Metal library and the kernels' entry points need of the runtime.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulation {

constexpr unsigned LANES = 32;
constexpr unsigned SLOT = 48;  // bytes that a lane can hand to the others of its simdgroup in one operation

// Where a thread is; three sizes each as in Metal's attributes.
struct Thread {
  uint32_t position_in_grid[3], position_in_group[3], group_position[3];
  uint32_t grid[3], groups[3], group_size[3], dispatch_group_size[3];
  uint32_t index, lane, simdgroup, simdgroups;
};

enum Memory : unsigned { DEVICE = 1, THREADGROUP = 2 };

const Thread& thread();
// Memory that the threads of a threadgroup share, one block per key; poisoned with NaN.
void* shared(const void* key, size_t bytes, size_t alignment);
void threadgroup_barrier(unsigned memory, int line);
void simdgroup_barrier(unsigned memory, int line);
// Publishes `bytes` of this lane and returns those of all lanes, SLOT bytes apart, valid up to the next
// exchange.
const char* exchange(const void* mine, size_t bytes, int line);
// Memory for what all lanes would compute of an exchange, 64 numbers; `first` is whether nobody has yet.
void* result(bool& first);
// Notes that all lanes of the simdgroup should be here now; those that are not are missed at the next
// operation.
void convergent(int line);
// Notes that the simdgroup accesses these bytes, by which lane is unknown.
void touch(const volatile void* start, size_t bytes, bool write, int line);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A parameter's type: 'p' pointer, 'r' reference, 'v' value; its element: f(loat), h(alf), b(float),
// i(nteger), ? (another); sizes of what is pointed or referred to, and of the element.
struct Parameter {
  char kind, element;
  uint32_t size, element_size;
  bool constant;
};

// What is compiled for each kernel.
struct Kernel {
  void (*entry)(void* const* arguments);
  int (*describe)(Parameter* out);  // returns the number of parameters
};
extern const Kernel kernels[];
extern const unsigned kernel_count;

struct Range {
  char* start;
  size_t bytes;
  uint32_t number;  // of the buffer
};

struct Dispatch {
  uint32_t grid[3], group_size[3];
  uint32_t seed;      // order of threadgroups, simdgroups and lanes
  uint32_t silenced;  // line of a barrier to leave out, or 0
  uint32_t buffers;   // number of ranges of device memory, for the detection of races
  const Range* device;
};

}  // namespace emulation

// For Python. The second runs a kernel over a grid; it returns what went wrong, or nullptr.
extern "C" int emulation_describe(unsigned number, emulation::Parameter* out);
extern "C" const char* emulation_run(unsigned number, void* const* arguments,
                                     const emulation::Dispatch* dispatch);
