// Compiles the engine for AVX2 and FMA.
#include "lstm/engine.h"

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LSTM_FUSED_ISA avx2
#define LSTM_FUSED_VECTOR_BYTES 32
#define LSTM_FUSED_REGISTERS 16
#define LSTM_FUSED_AVX2
#include "targets/instantiate.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
