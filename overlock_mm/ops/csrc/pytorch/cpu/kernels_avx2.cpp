#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define OVERLOCK_ISA avx2
#define OVERLOCK_VECTOR_BYTES 32
#include "depthwise_tables_impl.h"
#include "map_kernels_impl.h"
#include "row_kernels_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
