// Compiles the engine for AVX-512.
#include "lstm/engine.h"

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif
#define LSTM_FUSED_ISA avx512
#define LSTM_FUSED_VECTOR_BYTES 64
#define LSTM_FUSED_REGISTERS 32
#define LSTM_FUSED_AVX512
#include "targets/instantiate.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
