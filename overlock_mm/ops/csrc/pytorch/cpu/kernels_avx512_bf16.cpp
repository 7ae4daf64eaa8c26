// Products of pairs of bfloat16 numbers. Accumulation, statistics and norms are those of the other
// files.
#include "pairs.h"

#if OVERLOCK_HAS_AVX512_BF16
// Before the attributes: these headers set their own.
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#endif
#define OVERLOCK_ISA avx512_bf16
#define OVERLOCK_VECTOR_BYTES 64
#define OVERLOCK_BFLOAT16_INSTRUCTIONS
#include "depthwise_kernels_impl.h"

namespace overlock {
namespace avx512_bf16 {
namespace {

template <>
struct Products<Pair> {
  static constexpr int64_t kRows = 2;
  typedef Words type;
  static inline Words load(const Pair* from) {
    return Wide<uint32_t>::load(reinterpret_cast<const uint32_t*>(from));
  }
  static inline Words last_row(Words x) { return x & 0xffff0000u; }
  static inline Floats add(Floats sum, Words weight, Words x) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)x);
  }
};

void pack_pairs(int64_t width, int64_t channels, const Bfloat16* source, const Bfloat16* below,
                int64_t source_ld, const float* /* bias */, bool /* gelu */, Pair* packed,
                int64_t ld) {
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < channels; c += Wide<float>::kLanes) {
      // As float32, a bfloat16 number has its bits in the upper half.
      const Words first = (Words)load_first(source + x * source_ld + c, channels - c);
      const Words second = (Words)load_first(below + x * source_ld + c, channels - c);
      Wide<uint32_t>::store(reinterpret_cast<uint32_t*>(packed + x * ld + c), first >> 16 | second);
    }
  }
}

}  // namespace

const DepthwiseKernels<Bfloat16, Pair>& pair_kernels() {
  static constexpr DepthwiseKernels<Bfloat16, Pair> kernels = {
      Wide<float>::kLanes, convolve<Bfloat16, Pair>, convolve<float, Pair>, pack_pairs,
      layer_norm<Bfloat16>};
  return kernels;
}

}  // namespace avx512_bf16
}  // namespace overlock

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
