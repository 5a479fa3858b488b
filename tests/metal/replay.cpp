// Runs recorded dispatches, each buffer in memory of its exact size: a program for the sanitizers.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "runtime.h"

namespace {

template <class T>
bool read(FILE* file, T* out, size_t count = 1) {
  return fread(out, sizeof(T), count, file) == count;
}

}  // namespace

int main(int count, char** arguments) {
  FILE* file = count == 2 ? fopen(arguments[1], "rb") : nullptr;
  if (!file) return 2;
  uint32_t head[8];  // number of the kernel, grid, group size, number of buffers
  while (read(file, head, 8)) {
    if (head[0] >= emulation::kernel_count) return 2;
    std::vector<void*> buffers(head[7]);
    for (auto& buffer : buffers) {
      uint64_t bytes;
      if (!read(file, &bytes)) return 2;
      buffer = malloc(bytes);  // never freed: no thread waits for those of the grid
      if (!read(file, static_cast<char*>(buffer), bytes)) return 2;
    }
    emulation::Dispatch dispatch{};
    for (int axis = 0; axis < 3; axis++)
      dispatch.grid[axis] = head[1 + axis], dispatch.group_size[axis] = head[4 + axis];
    const char* silenced = getenv("SILENCED_BARRIER");
    dispatch.silenced = silenced ? atoi(silenced) : 0;
    if (const char* error = emulation_run(head[0], buffers.data(), &dispatch)) {
      fprintf(stderr, "%s\n", error);
      return 1;
    }
  }
  return 0;
}
