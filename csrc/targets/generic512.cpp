// Compiles the engine in the blocking of avx512 without its instructions, to test it on any machine.
#include "lstm/engine.h"

#define LSTM_FUSED_ISA generic512
#define LSTM_FUSED_VECTOR_BYTES 64
#define LSTM_FUSED_REGISTERS 32
#include "targets/instantiate.h"
