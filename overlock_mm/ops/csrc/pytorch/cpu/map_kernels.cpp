#include "map_kernels.h"

#include "instruction_set.h"

namespace overlock {

template <typename S>
const MapKernels<S>& map_kernels() {
  return OVERLOCK_FOR_INSTRUCTION_SET(map_kernels<S>());
}

template const MapKernels<float>& map_kernels<float>();
template const MapKernels<double>& map_kernels<double>();
template const MapKernels<Half>& map_kernels<Half>();
template const MapKernels<Bfloat16>& map_kernels<Bfloat16>();

}  // namespace overlock
