// Detects accesses to device and threadgroup memory that no barrier orders; without DETECT_RACES, nothing.
#pragma once
#include "runtime.h"

namespace emulation {
namespace races {

const Thread* running();

#ifdef DETECT_RACES
void start_dispatch(const Dispatch& dispatch);
void start_threadgroup(uint32_t number);
void add(char* start, size_t bytes, Memory memory);
void threadgroup_barrier(uint32_t thread, uint32_t simdgroup, unsigned memory);
void simdgroup_barrier(uint32_t thread, unsigned memory);
// By the lane that runs, or, with a line, by an unknown lane of its simdgroup.
void access(const volatile void* start, size_t bytes, bool write, int line, void* where);
const char* found();
#else
inline void start_dispatch(const Dispatch&) {}
inline void start_threadgroup(uint32_t) {}
inline void add(char*, size_t, Memory) {}
inline void threadgroup_barrier(uint32_t, uint32_t, unsigned) {}
inline void simdgroup_barrier(uint32_t, unsigned) {}
inline void access(const volatile void*, size_t, bool, int, void*) {}
inline const char* found() { return nullptr; }
#endif

}  // namespace races
}  // namespace emulation
