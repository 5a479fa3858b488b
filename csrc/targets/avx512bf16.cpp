// Compiles the engine for AVX-512 with bfloat16 dot products.
#include "lstm/engine.h"

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma")
#endif
#define LSTM_FUSED_ISA avx512bf16
#define LSTM_FUSED_VECTOR_BYTES 64
#define LSTM_FUSED_REGISTERS 32
#define LSTM_FUSED_AVX512
#define LSTM_FUSED_BF16_DOT
#include "targets/instantiate.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
