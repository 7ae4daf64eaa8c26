// The border rule, along one axis of the map, for every compiled backend.
//
// A window never leaves the map and is never padded: it is shifted inwards. With a
// dilation d the map falls into d interleaved ones, and the rule holds in each of them.
// All functions need size >= kernel_size * dilation.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define OVERLOCK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OVERLOCK_HOST_DEVICE inline
#endif

namespace overlock {

// The other arguments have the type of the index, so that a kernel may count in 32 bits.
template <typename Int>
using Same = typename std::common_type<Int>::type;

// Rows of the interleaved map that row `index` belongs to.
template <typename Int>
OVERLOCK_HOST_DEVICE Int submap_size(Int index, Same<Int> size, Same<Int> dilation) {
  return (size - index % dilation + dilation - 1) / dilation;
}

// First row of the window of row `index`; its other rows follow at steps of `dilation`.
template <typename Int>
OVERLOCK_HOST_DEVICE Int window_start(Int index, Same<Int> size, Same<Int> kernel_size,
                                      Same<Int> dilation = 1) {
  const Int last = submap_size(index, size, dilation) - kernel_size;
  Int first = index / dilation - kernel_size / 2;
  first = first < 0 ? 0 : first;
  first = first > last ? last : first;
  return first * dilation + index % dilation;
}

// First of the rows whose window holds row `index`; the others follow at steps of
// `dilation`, up to `inverse_last`.
template <typename Int>
OVERLOCK_HOST_DEVICE Int inverse_first(Int index, Same<Int> kernel_size, Same<Int> dilation = 1) {
  const Int row = index / dilation;
  return (row < kernel_size ? 0 : row - kernel_size / 2) * dilation + index % dilation;
}

// Last of the rows whose window holds row `index`.
template <typename Int>
OVERLOCK_HOST_DEVICE Int inverse_last(Int index, Same<Int> size, Same<Int> kernel_size,
                                      Same<Int> dilation = 1) {
  const Int row = index / dilation;
  const Int rows = submap_size(index, size, dilation);
  const Int last = row >= rows - kernel_size ? rows - 1 : row + kernel_size / 2;
  return last * dilation + index % dilation;
}

}  // namespace overlock
