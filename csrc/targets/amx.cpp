// Compiles the engine for AVX-512 with bfloat16 dot products and AMX tiles.
#include "lstm/engine.h"

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#endif
#define LSTM_FUSED_ISA amx
#define LSTM_FUSED_VECTOR_BYTES 64
#define LSTM_FUSED_REGISTERS 32
#define LSTM_FUSED_AVX512
#define LSTM_FUSED_BF16_DOT
#define LSTM_FUSED_AMX
#include "targets/instantiate.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
