#include "map_kernels.h"

#include <ATen/Version.h>

#include <string>

namespace overlock {

template <typename S>
const MapKernels<S>& map_kernels() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512::map_kernels<S>();
  }
  if (capability == "AVX2") {
    return avx2::map_kernels<S>();
  }
#endif
  return baseline::map_kernels<S>();
}

template const MapKernels<float>& map_kernels<float>();
template const MapKernels<double>& map_kernels<double>();
template const MapKernels<Half>& map_kernels<Half>();
template const MapKernels<Bfloat16>& map_kernels<Bfloat16>();

}  // namespace overlock
