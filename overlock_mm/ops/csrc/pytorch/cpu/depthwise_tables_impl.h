// The depthwise kernels of an instruction set for all types: see depthwise_kernels_impl.h.

#include "depthwise_kernels_impl.h"

namespace overlock {
namespace OVERLOCK_ISA {
namespace {

template <typename S>
struct DepthwiseTable {
  using T = typename Computed<S>::type;
  static constexpr DepthwiseKernels<S> kernels = {Wide<T>::kLanes, convolve<S, T>, convolve<T, T>,
                                                  pack<S, T>, layer_norm<S>};
};

}  // namespace

template <>
const DepthwiseKernels<float>& depthwise_kernels<float>() {
  return DepthwiseTable<float>::kernels;
}

template <>
const DepthwiseKernels<double>& depthwise_kernels<double>() {
  return DepthwiseTable<double>::kernels;
}

template <>
const DepthwiseKernels<Half>& depthwise_kernels<Half>() {
  return DepthwiseTable<Half>::kernels;
}

template <>
const DepthwiseKernels<Bfloat16>& depthwise_kernels<Bfloat16>() {
  return DepthwiseTable<Bfloat16>::kernels;
}

}  // namespace OVERLOCK_ISA
}  // namespace overlock
