#include "depthwise_kernels.h"

#include <type_traits>

#include "instruction_set.h"

namespace overlock {

template <typename S>
const DepthwiseKernels<S>& depthwise_kernels() {
#if OVERLOCK_HAS_AVX512_BF16
  if constexpr (std::is_same_v<S, Bfloat16>) {
    if (has_pair_kernels()) {
      return avx512_bf16::depthwise_kernels();
    }
  }
#endif
  return OVERLOCK_FOR_INSTRUCTION_SET(depthwise_kernels<S>());
}

const DepthwiseKernels<Bfloat16, Pair>* pair_kernels() {
#if OVERLOCK_HAS_AVX512_BF16
  if (has_pair_kernels()) {
    return &avx512_bf16::pair_kernels();
  }
#endif
  return nullptr;
}

template const DepthwiseKernels<float>& depthwise_kernels<float>();
template const DepthwiseKernels<double>& depthwise_kernels<double>();
template const DepthwiseKernels<Half>& depthwise_kernels<Half>();
template const DepthwiseKernels<Bfloat16>& depthwise_kernels<Bfloat16>();

}  // namespace overlock
