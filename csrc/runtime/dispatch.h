// Which compiled engine this machine runs, and what else is to be known of its processor.
#pragma once

#include <string>
#include <vector>

#include "lstm/engine.h"

namespace lstm_fused {

// The best set the machine has, or the one that LSTM_FUSED_ISA names; throws std::runtime_error where the
// machine lacks that one. Decided once.
const Engine& engine();

// The names of all the sets this machine runs, best first.
std::vector<std::string> isas();

// Whether Intel made the processor.
bool on_intel();

}  // namespace lstm_fused
