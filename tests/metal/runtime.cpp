// Runs the threads of a grid as fibres: simdgroups in lockstep from one operation to the next, in a random
// order.
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "fibre.h"
#include "races.h"

#if defined(__x86_64__)
asm(".text\n.globl " FIBRE_SYMBOL "\n" FIBRE_SYMBOL
    ":\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#elif defined(__aarch64__)
asm(".text\n.globl " FIBRE_SYMBOL "\n" FIBRE_SYMBOL
    ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
#endif

#ifdef FIBRES_TELL_TSAN
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif
#ifdef FIBRES_TELL_ASAN
extern "C" void __asan_poison_memory_region(const volatile void*, size_t);
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t);
#endif

namespace emulation {
namespace {

constexpr size_t SHARED_LIMIT = 32 * 1024;  // Metal's, of every Apple GPU
constexpr size_t ARENA = 2 * SHARED_LIMIT, GAP = 64;

enum class At { START, OPERATION, BARRIER, END };

struct Simdgroup;

struct Worker {
  Simdgroup* simdgroup;
  Thread thread;
  Fibre fibre;
  At at;
  int line;
  uint32_t trail;                   // of the lines in convergent()
  unsigned parity, barrier_parity;  // of the exchange buffer, of threadgroup barriers
};

struct Block {
  const void* key;
  char* start;
};

struct Simdgroup {
  alignas(16) char slots[2][LANES][SLOT];
  alignas(16) double results[2][64];
  bool computed[2];
  std::vector<Worker*> lanes;  // in the order they run in
  At at;
  int line;
};

// One dispatch at a time.
const Kernel* kernel;
void* const* arguments;
uint32_t silenced;
std::vector<std::unique_ptr<Worker>> workers;
std::vector<Simdgroup> simdgroups;
std::vector<Block> blocks;
char* arena = nullptr;
size_t arena_used, shared_bytes;
Worker* current;
char message[1024];
bool failed;

// Barriers: 0 is the threadgroup's, then come the simdgroups'; at the last all threads start, or end.
constexpr unsigned GROUP = 1 + 1024 / LANES;
#ifdef FIBRES_TELL_TSAN
// What ThreadSanitizer takes for the barriers, by parity.
char barriers[2][GROUP + 1];
void sync_before(unsigned which, unsigned parity) { __tsan_release(&barriers[parity][which]); }
void sync_after(unsigned which, unsigned parity) { __tsan_acquire(&barriers[parity][which]); }
#else
void sync_before(unsigned, unsigned) {}
void sync_after(unsigned, unsigned) {}
#endif

void body() {
  current->fibre.entered();
  sync_after(GROUP, 0);
  kernel->entry(arguments);
  sync_before(GROUP, 1);
  current->at = At::END;
  current->fibre.yield();
}

void wait(At at, int line) {
  Worker* me = current;
  me->at = at;
  me->line = line;
  me->fibre.yield();
}

void complain(const char* format, ...) {
  if (failed) return;
  failed = true;
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
}

// Runs every lane up to its next operation, barrier or end.
void advance(Simdgroup& group) {
  for (Worker* lane : group.lanes) {
    current = lane;
    lane->fibre.resume();
    if (failed) return;
  }
  Worker& first = *group.lanes[0];
  for (Worker* lane : group.lanes) {
    Worker& other = *lane;
    if (other.trail != first.trail)
      return complain(
          "a simdgroup has diverged: lanes %u and %u differ in matrices loaded or stored before line %d",
          first.thread.lane, other.thread.lane, std::max(first.line, other.line));
    if (other.at == first.at && (other.at == At::END || other.line == first.line)) continue;
    auto name = [](const Worker& w) {
      return w.at == At::END       ? "has ended"
             : w.at == At::BARRIER ? "waits at the barrier"
                                   : "is at the operation";
    };
    return complain("a simdgroup has diverged: lane %u %s of line %d, lane %u %s of line %d",
                    first.thread.lane, name(first), first.at == At::END ? 0 : first.line, other.thread.lane,
                    name(other), other.at == At::END ? 0 : other.line);
  }
  group.at = first.at;
  group.line = first.line;
}

void run_threadgroup() {
  for (;;) {
    for (auto& group : simdgroups) {
      if (group.at == At::END) continue;
      do advance(group);
      while (!failed && group.at == At::OPERATION);
      if (failed) return;
    }
    Simdgroup& first = simdgroups[0];
    for (auto& group : simdgroups)
      if (group.at != first.at || (group.at == At::BARRIER && group.line != first.line)) {
        auto& waits = group.at == At::BARRIER ? group : first;
        auto& other = group.at == At::BARRIER ? first : group;
        if (other.at == At::END)
          return complain("a threadgroup has diverged: the barrier of line %d is not reached by all threads",
                          waits.line);
        return complain("a threadgroup has diverged: threads wait at the barriers of lines %d and %d",
                        waits.line, other.line);
      }
    if (first.at == At::END) return;
  }
}

void place(Worker& worker, uint32_t index, const uint32_t* at, const Dispatch& d) {
  Thread& t = worker.thread;
  uint32_t count = 1;
  for (int axis = 0; axis < 3; axis++) {
    t.grid[axis] = d.grid[axis];
    t.dispatch_group_size[axis] = d.group_size[axis];
    t.groups[axis] = (d.grid[axis] + d.group_size[axis] - 1) / d.group_size[axis];
    t.group_position[axis] = at[axis];
    t.group_size[axis] = std::min(d.group_size[axis], d.grid[axis] - at[axis] * d.group_size[axis]);
    count *= t.group_size[axis];
  }
  t.position_in_group[0] = index % t.group_size[0];
  t.position_in_group[1] = index / t.group_size[0] % t.group_size[1];
  t.position_in_group[2] = index / t.group_size[0] / t.group_size[1];
  for (int axis = 0; axis < 3; axis++)
    t.position_in_grid[axis] = at[axis] * d.group_size[axis] + t.position_in_group[axis];
  t.index = index;
  t.lane = index % LANES;
  t.simdgroup = index / LANES;
  t.simdgroups = (count + LANES - 1) / LANES;
  worker.trail = 0;
  worker.parity = worker.barrier_parity = 0;
  worker.at = At::START;
  worker.fibre.start(body);
}

void start_threadgroup(uint32_t number, const Dispatch& d, std::minstd_rand& random) {
  uint32_t groups[3], at[3], count = 1;
  for (int axis = 0; axis < 3; axis++)
    groups[axis] = (d.grid[axis] + d.group_size[axis] - 1) / d.group_size[axis];
  at[0] = number % groups[0], at[1] = number / groups[0] % groups[1], at[2] = number / groups[0] / groups[1];
  for (int axis = 0; axis < 3; axis++)
    count *= std::min(d.group_size[axis], d.grid[axis] - at[axis] * d.group_size[axis]);
  blocks.clear();
  blocks.reserve(64);
  arena_used = shared_bytes = 0;
  if (!arena) arena = static_cast<char*>(aligned_alloc(GAP, ARENA));
#ifdef FIBRES_TELL_ASAN
  __asan_unpoison_memory_region(arena, ARENA);
#endif
  memset(arena, 0xff, ARENA);  // NaN in every format
#ifdef FIBRES_TELL_ASAN
  __asan_poison_memory_region(arena, ARENA);
#endif
  while (workers.size() < count) workers.emplace_back(new Worker);
  simdgroups.resize((count + LANES - 1) / LANES);
  for (auto& group : simdgroups) group.lanes.clear(), group.at = At::START;
  for (uint32_t i = 0; i < count; i++) {
    place(*workers[i], i, at, d);
    simdgroups[i / LANES].lanes.push_back(workers[i].get());
  }
  if (d.seed) {
    for (auto& group : simdgroups) std::shuffle(group.lanes.begin(), group.lanes.end(), random);
    std::shuffle(simdgroups.begin(), simdgroups.end(), random);
  }
  for (auto& group : simdgroups)
    for (Worker* lane : group.lanes) lane->simdgroup = &group;
  races::start_threadgroup(number);
}

}  // namespace

const Thread& thread() { return current->thread; }

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  if (!failed) vsnprintf(message, sizeof message, format, list);
  va_end(list);
  failed = true;
  current->fibre.yield();  // for good
  __builtin_unreachable();
}

namespace {
void need_all_lanes(int line) {
  size_t lanes = current->simdgroup->lanes.size();
  if (lanes != LANES)
    fail("line %d: an operation of the simdgroup needs 32 lanes, this one has %zu", line, lanes);
}
}  // namespace

void* shared(const void* key, size_t bytes, size_t alignment) {
  for (auto& block : blocks)
    if (block.key == key) return block.start;
  arena_used = (arena_used + alignment - 1) / alignment * alignment;
  if ((shared_bytes += bytes) > SHARED_LIMIT)
    fail("the threadgroup uses %zu bytes of threadgroup memory, more than %zu", shared_bytes, SHARED_LIMIT);
  char* start = arena + arena_used;
  arena_used = (arena_used + bytes + 2 * GAP - 1) / GAP * GAP;
#ifdef FIBRES_TELL_ASAN
  __asan_unpoison_memory_region(start, bytes);
#endif
  blocks.push_back({key, start});
  races::add(start, bytes, THREADGROUP);
  return start;
}

void threadgroup_barrier(unsigned memory, int line) {
  if (uint32_t(line) == silenced) return;
  Worker* me = current;
  unsigned parity = me->barrier_parity ^= 1;
  sync_before(0, parity);
  wait(At::BARRIER, line);
  sync_after(0, parity);
  races::threadgroup_barrier(me->thread.index, me->thread.simdgroup, memory);
}

void simdgroup_barrier(unsigned memory, int line) {
  if (uint32_t(line) == silenced) return;
  Worker* me = current;
  unsigned parity = me->parity ^= 1;
  sync_before(1 + me->thread.simdgroup, parity);
  wait(At::OPERATION, line);
  sync_after(1 + me->thread.simdgroup, parity);
  races::simdgroup_barrier(me->thread.index, memory);
}

const char* exchange(const void* mine, size_t bytes, int line) {
  need_all_lanes(line);
  Worker* me = current;
  unsigned parity = me->parity ^= 1;
  auto& slots = me->simdgroup->slots[parity];
  memcpy(slots[me->thread.lane], mine, bytes);
  me->simdgroup->computed[parity] = false;
  wait(At::OPERATION, line);
  return slots[0];
}

void* result(bool& first) {
  Simdgroup& group = *current->simdgroup;
  unsigned parity = current->parity;
  first = !group.computed[parity];
  group.computed[parity] = true;
  return group.results[parity];
}

void convergent(int line) {
  need_all_lanes(line);
  current->trail = current->trail * 31 + uint32_t(line);
}

void touch(const volatile void* start, size_t bytes, bool write, int line) {
  if (current->thread.lane == 0) races::access(start, bytes, write, line, nullptr);
}

namespace races {
// For races.cpp: who runs.
const Thread* running() { return current ? &current->thread : nullptr; }
}  // namespace races

}  // namespace emulation

int emulation_describe(unsigned number, emulation::Parameter* out) {
  return emulation::kernels[number].describe(out);
}

const char* emulation_run(unsigned number, void* const* given, const emulation::Dispatch* how) {
  using namespace emulation;
  const Dispatch& dispatch = *how;
  kernel = &kernels[number];
  arguments = given;
  silenced = dispatch.silenced;
  failed = false;
  uint32_t groups = 1;
  for (int axis = 0; axis < 3; axis++)
    groups *= (dispatch.grid[axis] + dispatch.group_size[axis] - 1) / dispatch.group_size[axis];
  std::minstd_rand random(dispatch.seed);
  std::vector<uint32_t> order(groups);
  for (uint32_t i = 0; i < groups; i++) order[i] = i;
  if (dispatch.seed) std::shuffle(order.begin(), order.end(), random);
  races::start_dispatch(dispatch);
  for (uint32_t group : order) {
    start_threadgroup(group, dispatch, random);
    sync_before(GROUP, 0);
    run_threadgroup();
    sync_after(GROUP, 1);
    if (failed) break;
  }
  const char* race = races::found();
  return failed ? message : race;
}
