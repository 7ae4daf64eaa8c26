#include "depthwise_kernels.h"

#include <ATen/Version.h>

#include <string>

namespace overlock {

template <typename T>
const DepthwiseKernels<T>& depthwise_kernels() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512::depthwise_kernels<T>();
  }
  if (capability == "AVX2") {
    return avx2::depthwise_kernels<T>();
  }
#endif
  return baseline::depthwise_kernels<T>();
}

template const DepthwiseKernels<float>& depthwise_kernels<float>();
template const DepthwiseKernels<double>& depthwise_kernels<double>();

}  // namespace overlock
