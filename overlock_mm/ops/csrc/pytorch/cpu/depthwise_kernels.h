// Arithmetic of a depthwise convolution on one row of a map, compiled once per instruction set.
//
// Like row_kernels.h, these take only pointers and sizes. Maps are rows of columns of channels.
// "Panel" is a range of channels that is computed at a time; "ld" is the distance of two columns.
// S is the type of maps in memory, T that of arithmetic and of everything else. P is what rows of
// the map and of the kernel are packed as: T, or Pair, where a packed row stands for itself and
// the row below.
#pragma once

#include <cstdint>

#include "pairs.h"
#include "storage.h"

namespace overlock {

enum class Stat { kNone, kSum, kSumOfSquares };

template <typename S, typename P = typename Computed<S>::type,
          typename T = typename Computed<S>::type>
struct DepthwiseRow {
  int64_t kernel_size;      // K, odd, 3 to 17
  int64_t width;            // columns of the map
  int64_t begin;            // columns to compute: [begin, end)
  int64_t end;              //
  int64_t channels;         // of the panel
  int64_t tap_begin;        // rows of the kernel that lie in the map: [tap_begin, tap_end)
  int64_t tap_end;          //
  const P* const* sources;  // row of the map for each row of the kernel, readable to whole vectors;
                            // Pair: for the last row the one above, which ends with it
  int64_t source_ld;        //
  const P* weight;          // [K * K], taps at distance `weight_ld`, readable to whole vectors;
                            // Pair: [(K - 1) * K]
  int64_t weight_ld;        //
  const T* bias;            // readable to whole vectors
  const S* addend;          // of column `begin`; nullptr: none; columns at distance `out_ld`
  S* out;                   // where column `begin` goes
  int64_t out_ld;           //
  bool gelu;                // of the result
  Stat stat;                // of the result, over the columns
  T* sums;                  // where it goes, one per channel; added to unless begin is 0
};

template <typename S, typename T = typename Computed<S>::type>
struct NormRow {
  int64_t columns;
  int64_t channels;  // of the map
  const T* weight;
  const T* bias;
  T eps;
  const T* x;
  const T* skip_weight;  // nullptr: 1
  const T* skip_bias;    // nullptr: 0
  S* skip;               // skip_weight * x + skip_bias
  S* out;
};

template <typename S, typename P = typename Computed<S>::type,
          typename T = typename Computed<S>::type>
struct DepthwiseKernels {
  int64_t lanes;  // of a vector

  void (*convolve)(const DepthwiseRow<S, P>& row);

  // The same without rounding the result.
  void (*convolve_wide)(const DepthwiseRow<T, P>& row);

  // Copies a panel of a row of the map to whole vectors at `ld`: plus `bias` if there is one,
  // then through GELU if asked. Pair: copies it with the row `below`, without bias and GELU.
  void (*pack)(int64_t width, int64_t channels, const S* source, const S* below, int64_t source_ld,
               const T* bias, bool gelu, P* packed, int64_t ld);

  // LayerNorm over the channels of each column.
  void (*layer_norm)(const NormRow<S>& row);
};

// The kernels for the instruction set that ATen uses (ATEN_CPU_CAPABILITY overrules).
template <typename S>
const DepthwiseKernels<S>& depthwise_kernels();

// Kernels that multiply pairs, or nullptr: see pairs.h.
const DepthwiseKernels<Bfloat16, Pair>* pair_kernels();

namespace baseline {
template <typename S>
const DepthwiseKernels<S>& depthwise_kernels();
}
namespace avx2 {
template <typename S>
const DepthwiseKernels<S>& depthwise_kernels();
}
namespace avx512 {
template <typename S>
const DepthwiseKernels<S>& depthwise_kernels();
}
namespace avx512_bf16 {
const DepthwiseKernels<Bfloat16>& depthwise_kernels();
const DepthwiseKernels<Bfloat16, Pair>& pair_kernels();
}  // namespace avx512_bf16

}  // namespace overlock
