// Chooses the compiled engine for this machine, and describes the machine.
#pragma once

#include <string>
#include <vector>

#include "lstm/engine.h"

namespace lstm_fused {

// The engine of the best instruction set that the machine has, or of the one that LSTM_FUSED_ISA names;
// throws std::runtime_error if the machine lacks it. Decided once.
const Engine& engine();

// The names of all instruction sets that this machine runs, best first.
std::vector<std::string> isas();

// A compiled instruction set, whether or not this machine runs it; null if none has this name.
const Isa* isa_of(const std::string& name);

// Bytes of one core's L2 cache.
int64_t l2_bytes();

// Whether Intel made the processor.
bool on_intel();

}  // namespace lstm_fused
