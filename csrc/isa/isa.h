// Describes an instruction set to code that is compiled for every machine.
#pragma once

#include <cstdint>

namespace lstm_fused {

struct Isa {
  const char* name;
  int64_t vector_bytes;
  int mr;        // rows of the vector micro-kernel
  bool has_amx;  // AMX tiles multiply bfloat16
};

}  // namespace lstm_fused
