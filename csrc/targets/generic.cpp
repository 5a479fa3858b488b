// Compiles the engine for the baseline of every machine: SSE2 on x86, NEON on Arm.
#include "lstm/engine.h"

#define LSTM_FUSED_ISA generic
#define LSTM_FUSED_VECTOR_BYTES 16
#define LSTM_FUSED_REGISTERS 16
#include "targets/instantiate.h"
