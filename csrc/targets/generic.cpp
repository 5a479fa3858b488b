// Compiles the engine for the baseline of every machine: SSE2 on x86, NEON on Arm.
#include "lstm/engine.h"

#define LSTM_FUSED_ISA generic
#define LSTM_FUSED_VECTOR_BYTES 16
#ifdef __aarch64__
#define LSTM_FUSED_REGISTERS 31  // one of 32 holds the element of A, which x86 can multiply from memory
#define LSTM_FUSED_MR 6
#else
#define LSTM_FUSED_REGISTERS 16
#endif
#include "targets/instantiate.h"
