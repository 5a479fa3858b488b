// The calls that -fsanitize=thread compiles into the kernels, with a detector of our own behind them: it
// knows Metal's barriers and their memory flags, needs no luck with the order of threads, and runs in one
// thread.
#include "races.h"

#ifdef DETECT_RACES
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

namespace emulation {
namespace races {
namespace {

constexpr uint32_t NOBODY = ~0u, MANY = NOBODY - 1;
constexpr uint32_t LINE = 1u << 31;
constexpr size_t GRANULE = 2;  // bytes, those of the smallest element

// The last access, or a summary of several reads that nothing orders: MANY lanes, simdgroups or threadgroups.
struct Access {
  uint32_t group = NOBODY, simdgroup, lane;
  uint32_t group_epoch, simdgroup_epoch;
  uint32_t where;  // in the library, or LINE and a line
};

struct Cell {
  Access write, read;
};

struct Region {
  char* start;
  size_t bytes;
  Memory memory;
  uint32_t number;
  std::vector<Cell> cells;
};

// Barriers that a thread has passed, for each kind of memory.
struct Epochs {
  uint32_t group[2], simdgroup[2];
};

std::vector<Region> regions;
std::vector<Epochs> epochs;
uint32_t group_now;
char message[512];

unsigned kind(Memory memory) { return memory == DEVICE ? 0 : 1; }

bool ordered(const Access& before, const Access& now) {
  if (before.group == NOBODY) return true;
  if (before.group != now.group) return false;
  if (before.group_epoch < now.group_epoch) return true;
  if (before.simdgroup != now.simdgroup) return false;
  if (before.simdgroup_epoch < now.simdgroup_epoch) return true;
  return before.lane == now.lane && now.lane != MANY;
}

void report(const Region& region, size_t at, const Access& before, bool wrote, const Access& now,
            bool writes) {
  if (message[0]) return;
  auto name = [](char* out, size_t size, const Access& a) {
    if (a.group == MANY) return snprintf(out, size, "several threadgroups");
    if (a.simdgroup == MANY) return snprintf(out, size, "several simdgroups of threadgroup %u", a.group);
    if (a.lane == MANY) return snprintf(out, size, "simdgroup %u of threadgroup %u", a.simdgroup, a.group);
    return snprintf(out, size, "lane %u of simdgroup %u of threadgroup %u", a.lane, a.simdgroup, a.group);
  };
  auto where = [](char* out, size_t size, const Access& a) {
    return snprintf(out, size, a.where & LINE ? "line %u" : "@%x", a.where & ~LINE);
  };
  char first[96], second[96], memory[48], from[16], to[16];
  where(from, sizeof from, before);
  where(to, sizeof to, now);
  name(first, sizeof first, before);
  name(second, sizeof second, now);
  if (region.memory == DEVICE)
    snprintf(memory, sizeof memory, "buffer %u", region.number);
  else
    snprintf(memory, sizeof memory, "threadgroup memory");
  snprintf(message, sizeof message, "a race on %s, byte %zu: %s by %s (%s), %s by %s (%s)", memory, at,
           wrote ? "written" : "read", first, from, writes ? "written" : "read", second, to);
}

void merge(Access& reads, const Access& now) {
  if (ordered(reads, now)) {  // what comes after this one comes after those
    reads = now;
    return;
  }
  if (reads.group != now.group)
    reads.group = MANY;
  else if (reads.simdgroup != now.simdgroup)
    reads.simdgroup = MANY;
  else if (reads.lane != now.lane)
    reads.lane = MANY;
  reads.group_epoch = std::max(reads.group_epoch, now.group_epoch);
  reads.simdgroup_epoch = std::max(reads.simdgroup_epoch, now.simdgroup_epoch);
}

uint32_t offset(void* where) {
  static const char* base = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<void*>(&ordered), &info) ? static_cast<const char*>(info.dli_fbase)
                                                            : nullptr;
  }();
  return uint32_t(static_cast<const char*>(where) - base);
}

}  // namespace

void access(const volatile void* address, size_t bytes, bool write, int line, void* where) {
  const char* start = static_cast<const char*>(const_cast<const void*>(address));
  for (auto& region : regions) {
    if (start < region.start || start >= region.start + region.bytes) continue;
    const Thread& t = *running();
    const Epochs& e = epochs[t.index];
    unsigned k = kind(region.memory);
    Access now{group_now,  t.simdgroup,    line ? MANY : t.lane,
               e.group[k], e.simdgroup[k], line ? LINE | uint32_t(line) : offset(where)};
    size_t first = (start - region.start) / GRANULE;
    size_t last = std::min((start - region.start + bytes - 1) / GRANULE, region.cells.size() - 1);
    for (size_t i = first; i <= last; i++) {
      Cell& cell = region.cells[i];
      if (!ordered(cell.write, now)) report(region, i * GRANULE, cell.write, true, now, write);
      if (write) {
        if (!ordered(cell.read, now)) report(region, i * GRANULE, cell.read, false, now, true);
        cell.write = now;
        cell.read = Access();
      } else {
        merge(cell.read, now);
      }
    }
    return;
  }
}

void start_dispatch(const Dispatch& dispatch) {
  message[0] = 0;
  regions.clear();
  for (uint32_t i = 0; i < dispatch.buffers; i++) {
    const Range& range = dispatch.device[i];
    regions.push_back({range.start, range.bytes, DEVICE, range.number, {}});
    regions.back().cells.resize(range.bytes / GRANULE + 1);
  }
}

void start_threadgroup(uint32_t number) {
  group_now = number;
  epochs.assign(1024, Epochs());
  regions.erase(
      std::remove_if(regions.begin(), regions.end(), [](auto& r) { return r.memory == THREADGROUP; }),
      regions.end());
}

void add(char* start, size_t bytes, Memory memory) {
  regions.push_back({start, bytes, memory, 0, std::vector<Cell>(bytes / GRANULE + 1)});
}

void threadgroup_barrier(uint32_t thread, uint32_t, unsigned memory) {
  for (unsigned k = 0; k < 2; k++)
    if (memory >> k & 1) epochs[thread].group[k]++, epochs[thread].simdgroup[k]++;
}

void simdgroup_barrier(uint32_t thread, unsigned memory) {
  for (unsigned k = 0; k < 2; k++)
    if (memory >> k & 1) epochs[thread].simdgroup[k]++;
}

const char* found() { return message[0] ? message : nullptr; }

}  // namespace races
}  // namespace emulation

#define ACCESS(BYTES, WRITE) emulation::races::access(p, BYTES, WRITE, 0, __builtin_return_address(0))
#define OF_SIZE(N)                                             \
  void __tsan_read##N(void* p) { ACCESS(N, false); }           \
  void __tsan_write##N(void* p) { ACCESS(N, true); }           \
  void __tsan_unaligned_read##N(void* p) { ACCESS(N, false); } \
  void __tsan_unaligned_write##N(void* p) { ACCESS(N, true); } \
  void __tsan_volatile_read##N(void* p) { ACCESS(N, false); }  \
  void __tsan_volatile_write##N(void* p) { ACCESS(N, true); }

#pragma GCC diagnostic ignored "-Wmissing-declarations"
extern "C" {
OF_SIZE(1)
OF_SIZE(2)
OF_SIZE(4)
OF_SIZE(8)
OF_SIZE(16)
void __tsan_read_range(void* p, size_t n) { ACCESS(n, false); }
void __tsan_write_range(void* p, size_t n) { ACCESS(n, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
#endif
