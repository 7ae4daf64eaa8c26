// Arithmetic of a depthwise convolution on one row of a map, compiled once per instruction set.
//
// As for row_kernels.h: pure pointers and sizes. Maps are rows of columns of channels.
// "Panel" is a range of channels that is computed at a time; "ld" is the distance of two columns.
#pragma once

#include <cstdint>

namespace overlock {

enum class Stat { kNone, kSum, kSumOfSquares };

template <typename T>
struct DepthwiseRow {
  int64_t kernel_size;      // K, odd, 3 to 17
  int64_t width;            // columns of the map
  int64_t begin;            // columns to compute: [begin, end)
  int64_t end;              //
  int64_t channels;         // of the panel
  int64_t tap_begin;        // rows of the kernel that lie in the map: [tap_begin, tap_end)
  int64_t tap_end;          //
  const T* const* sources;  // row of the map for each row of the kernel, readable to whole vectors
  int64_t source_ld;        //
  const T* weight;          // [K * K], taps at distance `weight_ld`, readable to whole vectors
  int64_t weight_ld;        //
  const T* bias;            // readable to whole vectors
  const T* addend;          // nullptr: none; columns at distance `out_ld`
  T* out;                   //
  int64_t out_ld;           //
  bool gelu;                // of the result
  Stat stat;                // of the result, over the columns
  T* sums;                  // where it goes, one per channel; added to unless begin is 0
};

template <typename T>
struct NormRow {
  int64_t columns;
  int64_t channels;  // of the map
  const T* weight;
  const T* bias;
  T eps;
  T* x;                  // becomes skip_weight * x + skip_bias
  const T* skip_weight;  // nullptr: x stays
  const T* skip_bias;    // nullptr: 0
  T* out;
};

template <typename T>
struct DepthwiseKernels {
  int64_t lanes;  // of a vector

  void (*convolve)(const DepthwiseRow<T>& row);

  // Copies a panel of a row of the map to whole vectors at `ld`: plus `bias` if there is one,
  // then through GELU if asked.
  void (*pack)(int64_t width, int64_t channels, const T* source, int64_t source_ld, const T* bias,
               bool gelu, T* packed, int64_t ld);

  // LayerNorm over the channels of each column.
  void (*layer_norm)(const NormRow<T>& row);
};

// The kernels for the instruction set that ATen uses (ATEN_CPU_CAPABILITY overrules).
template <typename T>
const DepthwiseKernels<T>& depthwise_kernels();

namespace baseline {
template <typename T>
const DepthwiseKernels<T>& depthwise_kernels();
}
namespace avx2 {
template <typename T>
const DepthwiseKernels<T>& depthwise_kernels();
}
namespace avx512 {
template <typename T>
const DepthwiseKernels<T>& depthwise_kernels();
}

}  // namespace overlock
