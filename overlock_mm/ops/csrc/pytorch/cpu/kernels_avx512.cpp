#if defined(__x86_64__)
// Before the attributes: these headers set their own.
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
#define OVERLOCK_ISA avx512
#define OVERLOCK_VECTOR_BYTES 64
#include "depthwise_tables_impl.h"
#include "map_kernels_impl.h"
#include "row_kernels_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
