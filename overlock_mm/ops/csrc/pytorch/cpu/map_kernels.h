// Element-wise arithmetic on a row of a map, compiled once per instruction set.
//
// Like row_kernels.h, these take only pointers and sizes. A row consists of columns, a column of
// channels side by side; "ld" is the distance of two columns where it is not the number of
// channels. S is the type of maps in memory, T that of arithmetic and of numbers per channel.
#pragma once

#include <cstdint>

#include "storage.h"

namespace overlock {

template <typename S, typename T = typename Computed<S>::type>
struct MapKernels {
  // y = y * factor + shift; shift may be null.
  void (*scale)(int64_t columns, int64_t channels, const T* factor, const T* shift, S* y);

  // y = y * silu(gate) * factor; factor may be null.
  void (*gate)(int64_t columns, int64_t channels, const S* gate, const T* factor, S* y);

  // sums += x * x, over the columns.
  void (*add_squares)(int64_t columns, int64_t channels, const S* x, T* sums);

  // out = x * x_factor + y * y_factor + shift.
  void (*mix)(int64_t columns, int64_t channels, const S* x, int64_t x_ld, const T* x_factor,
              const S* y, int64_t y_ld, const T* y_factor, const T* shift, S* out, int64_t out_ld);
};

// The kernels for the instruction set that ATen uses (ATEN_CPU_CAPABILITY overrules).
template <typename S>
const MapKernels<S>& map_kernels();

namespace baseline {
template <typename S>
const MapKernels<S>& map_kernels();
}
namespace avx2 {
template <typename S>
const MapKernels<S>& map_kernels();
}
namespace avx512 {
template <typename S>
const MapKernels<S>& map_kernels();
}

}  // namespace overlock
