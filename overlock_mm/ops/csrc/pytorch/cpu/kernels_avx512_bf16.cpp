// What the instructions for bfloat16 speed up: products of pairs, and rounding. Accumulation,
// statistics and norms are those of the other files.
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
#include "row_kernels.h"

namespace overlock {
namespace avx512_bf16 {
namespace {

inline Words load_pairs(const Pair* from) {
  return Wide<uint32_t>::load(reinterpret_cast<const uint32_t*>(from));
}

inline Floats add_products(Floats sum, Words a, Words b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

template <>
struct Products<Pair> {
  static constexpr int64_t kRows = 2;
  typedef Words type;
  static inline Words load(const Pair* from) { return load_pairs(from); }
  static inline Words last_row(Words x) { return x & 0xffff0000u; }
  static inline Floats add(Floats sum, Words weight, Words x) {
    return add_products(sum, weight, x);
  }
};

// Numbers of one column.
inline void pack_column(int64_t channels, const Bfloat16* first, const Bfloat16* second,
                        Pair* packed) {
  for (int64_t c = 0; c < channels; c += Wide<float>::kLanes) {
    // As float32, a bfloat16 number has its bits in the upper half.
    const Words low = (Words)load_first(first + c, channels - c) >> 16;
    const Words high = (Words)load_first(second + c, channels - c);
    Wide<uint32_t>::store(reinterpret_cast<uint32_t*>(packed + c), low | high);
  }
}

void pack_rows(int64_t width, int64_t channels, const Bfloat16* source, const Bfloat16* below,
               int64_t source_ld, const float* /* bias */, bool /* gelu */, Pair* packed,
               int64_t ld) {
  for (int64_t x = 0; x < width; ++x) {
    pack_column(channels, source + x * source_ld, below + x * source_ld, packed + x * ld);
  }
}

void pack_columns(int64_t width, int64_t channels, const Bfloat16* source, int64_t source_ld,
                  Pair* packed, int64_t ld) {
  for (int64_t x = 0; x < width; ++x) {
    const Bfloat16* column = source + x * source_ld;
    pack_column(channels, column, x + 1 < width ? column + source_ld : column, packed + x * ld);
  }
}

// Weights of a token at most, each row of its window with a zero at the end, and as many as a
// vector writes past them.
constexpr int64_t kMostWeights = 17 * 18 + Wide<float>::kLanes;

inline Words repeat_pair(const Bfloat16* from) {
  uint32_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return Words{} + bits;
}

template <int M>
void aggregate_tokens(int64_t kernel_size, int64_t channels, const float* weight, int64_t weight_ld,
                      const Pair* value, int64_t value_row, int64_t value_ld, const int64_t* start,
                      Bfloat16* out, int64_t out_ld) {
  Bfloat16 rounded[M][kMostWeights];
  for (int i = 0; i < M; ++i) {
    for (int64_t r = 0; r < kernel_size; ++r) {
      const float* from = weight + i * weight_ld + r * kernel_size;
      Bfloat16* to = rounded[i] + r * (kernel_size + 1);
      for (int64_t s = 0; s <= kernel_size; s += Wide<float>::kLanes) {
        _mm256_storeu_epi16(to + s, (__m256i)_mm512_maskz_cvtneps_pbh(first_lanes(kernel_size - s),
                                                                      _mm512_loadu_ps(from + s)));
      }
    }
  }
  for (int64_t c = 0; c < channels; c += Wide<float>::kLanes) {
    Floats sum[M] = {};
    for (int64_t r = 0; r < kernel_size; ++r) {
      const Pair* source[M];
      for (int i = 0; i < M; ++i) {
        source[i] = value + r * value_row + start[i] * value_ld + c;
      }
      const Bfloat16* factor = rounded[0] + r * (kernel_size + 1);
      for (int64_t s = 0; s < kernel_size - 1; s += 2) {
        for (int i = 0; i < M; ++i) {
          sum[i] = add_products(sum[i], repeat_pair(factor + i * kMostWeights),
                                load_pairs(source[i] + s * value_ld));
        }
        factor += 2;
      }
      // The column beyond the window may be infinite.
      for (int i = 0; i < M; ++i) {
        sum[i] = add_products(sum[i], repeat_pair(factor + i * kMostWeights),
                              load_pairs(source[i] + (kernel_size - 1) * value_ld) & 0xffffu);
      }
    }
    for (int i = 0; i < M; ++i) {
      store_first(out + i * out_ld + c, sum[i], channels - c);
    }
  }
}

void aggregate_pairs(int64_t tokens, int64_t kernel_size, int64_t channels, const float* weight,
                     int64_t weight_ld, const Pair* value, int64_t value_row, int64_t value_ld,
                     const int64_t* start, Bfloat16* out, int64_t out_ld) {
  int64_t t = 0;
  // Independent sums hide the latency of the products.
  for (; t + 8 <= tokens; t += 8) {
    aggregate_tokens<8>(kernel_size, channels, weight + t * weight_ld, weight_ld, value, value_row,
                        value_ld, start + t, out + t * out_ld, out_ld);
  }
  for (; t + 3 <= tokens; t += 3) {
    aggregate_tokens<3>(kernel_size, channels, weight + t * weight_ld, weight_ld, value, value_row,
                        value_ld, start + t, out + t * out_ld, out_ld);
  }
  for (; t < tokens; ++t) {
    aggregate_tokens<1>(kernel_size, channels, weight + t * weight_ld, weight_ld, value, value_row,
                        value_ld, start + t, out + t * out_ld, out_ld);
  }
}

}  // namespace

const DepthwiseKernels<Bfloat16, Pair>& pair_kernels() {
  static constexpr DepthwiseKernels<Bfloat16, Pair> kernels = {
      Wide<float>::kLanes, convolve<Bfloat16, Pair>, convolve<float, Pair>, pack_rows,
      layer_norm<Bfloat16>};
  return kernels;
}

const DepthwiseKernels<Bfloat16>& depthwise_kernels() {
  static constexpr DepthwiseKernels<Bfloat16> kernels = {
      Wide<float>::kLanes, convolve<Bfloat16, float>, convolve<float, float>, pack<Bfloat16, float>,
      layer_norm<Bfloat16>};
  return kernels;
}

const PairRowKernels& pair_row_kernels() {
  static constexpr PairRowKernels kernels = {Wide<float>::kLanes, pack_columns, aggregate_pairs};
  return kernels;
}

}  // namespace avx512_bf16
}  // namespace overlock

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
