// The border rule, along one axis of the map, for every compiled backend.
//
// A window never leaves the map and is never padded: it is shifted inwards. With a
// dilation d the map falls into d interleaved ones, and the rule holds in each of them.
// All functions need size >= kernel_size * dilation.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define OVERLOCK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OVERLOCK_HOST_DEVICE inline
#endif

namespace overlock {

// Rows of the interleaved map that row `index` belongs to.
OVERLOCK_HOST_DEVICE int64_t submap_size(int64_t index, int64_t size, int64_t dilation) {
  return (size - index % dilation + dilation - 1) / dilation;
}

// First row of the window of row `index`; its other rows follow at steps of `dilation`.
OVERLOCK_HOST_DEVICE int64_t window_start(int64_t index, int64_t size, int64_t kernel_size,
                                          int64_t dilation = 1) {
  const int64_t last = submap_size(index, size, dilation) - kernel_size;
  int64_t first = index / dilation - kernel_size / 2;
  first = first < 0 ? 0 : first;
  first = first > last ? last : first;
  return first * dilation + index % dilation;
}

// First of the rows whose window holds row `index`; the others follow at steps of
// `dilation`, up to `inverse_last`.
OVERLOCK_HOST_DEVICE int64_t inverse_first(int64_t index, int64_t kernel_size,
                                           int64_t dilation = 1) {
  const int64_t row = index / dilation;
  return (row < kernel_size ? 0 : row - kernel_size / 2) * dilation + index % dilation;
}

// Last of the rows whose window holds row `index`.
OVERLOCK_HOST_DEVICE int64_t inverse_last(int64_t index, int64_t size, int64_t kernel_size,
                                          int64_t dilation = 1) {
  const int64_t row = index / dilation;
  const int64_t rows = submap_size(index, size, dilation);
  const int64_t last = row >= rows - kernel_size ? rows - 1 : row + kernel_size / 2;
  return last * dilation + index % dilation;
}

}  // namespace overlock
