// Products of pairs of bfloat16 numbers, added up in float32 by one instruction.
#pragma once

#include "storage.h"

// Whether the compiler has the instructions of kernels_avx512_bf16.cpp.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define OVERLOCK_HAS_AVX512_BF16 1
#else
#define OVERLOCK_HAS_AVX512_BF16 0
#endif

namespace overlock {

// Numbers of two adjacent rows or columns.
struct Pair {
  Bfloat16 first;
  Bfloat16 second;
};

// Whether to run the kernels of kernels_avx512_bf16.cpp: compiler and processor have AVX512_BF16,
// and ATEN_CPU_CAPABILITY does not name an instruction set. They take numbers below 2^-126 for
// zero.
bool has_pair_kernels();

}  // namespace overlock
