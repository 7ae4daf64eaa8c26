// CUDA backend of neighborhood_aggregate: launches on the current stream.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "../../common/cuda/neighborhood_aggregate.cuh"

namespace overlock {
namespace {

using at::Tensor;

constexpr int kBlockThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    aggregate_kernel(AggregateSizes sizes, TokenMap<const T> weight, TokenMap<const T> value,
                     TokenMap<T> out, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index < count) aggregate_element(sizes, weight, value, out, index);
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    weight_grad_kernel(AggregateSizes sizes, TokenMap<const T> grad_out, TokenMap<const T> value,
                       TokenMap<T> d_weight, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index < count) weight_grad_element(sizes, grad_out, value, d_weight, index);
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    value_grad_kernel(AggregateSizes sizes, TokenMap<const T> grad_out, TokenMap<const T> weight,
                      TokenMap<T> d_value, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index < count) value_grad_element(sizes, grad_out, weight, d_value, index);
}

template <typename T>
using Kernel = void (*)(AggregateSizes, TokenMap<const T>, TokenMap<const T>, TokenMap<T>, int64_t);

template <typename T>
TokenMap<const T> input_map(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1),
          tensor.stride(2),           tensor.stride(3), tensor.stride(4)};
}

// One thread per element of `result`.
template <typename T>
void launch(Kernel<T> kernel, const AggregateSizes& sizes, const Tensor& first,
            const Tensor& second, const Tensor& result) {
  const int64_t count = result.numel();
  const int64_t blocks = (count + kBlockThreads - 1) / kBlockThreads;
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(),
              "neighborhood_aggregate (cuda): the result has ", count,
              " elements, more than a launch takes; split the batch.");
  const TokenMap<T> output = {result.mutable_data_ptr<T>(),
                              result.stride(0),
                              result.stride(1),
                              result.stride(2),
                              result.stride(3),
                              result.stride(4)};
  const auto stream = c10::cuda::getCurrentCUDAStream();
  kernel<<<static_cast<unsigned>(blocks), kBlockThreads, 0, stream>>>(
      sizes, input_map<T>(first), input_map<T>(second), output, count);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

AggregateSizes aggregate_sizes(const Tensor& value, int64_t kernel_size, int64_t dilation) {
  return {value.size(0),
          value.size(1),
          static_cast<int>(value.size(2)),
          static_cast<int>(value.size(3)),
          static_cast<int>(value.size(4)),
          static_cast<int>(kernel_size),
          static_cast<int>(dilation)};
}

// Calls run(T()) for the dtype of the values.
template <typename Run>
void dispatch(const Tensor& value, Run run) {
  AT_DISPATCH_SWITCH(value.scalar_type(), "neighborhood_aggregate (cuda)",
                     AT_DISPATCH_CASE(at::kFloat, [&] { run(scalar_t()); })
                         AT_DISPATCH_CASE(at::kHalf, [&] { run(scalar_t()); })
                             AT_DISPATCH_CASE(at::kBFloat16, [&] { run(scalar_t()); }));
}

Tensor neighborhood_aggregate_forward(const Tensor& weight, const Tensor& value,
                                      int64_t kernel_size, int64_t dilation) {
  const c10::cuda::CUDAGuard guard(value.device());
  Tensor out = at::empty_like(value);
  if (value.numel() == 0) return out;
  const AggregateSizes sizes = aggregate_sizes(value, kernel_size, dilation);
  dispatch(value, [&](auto zero) {
    using T = decltype(zero);
    launch<T>(aggregate_kernel<T>, sizes, weight, value, out);
  });
  return out;
}

std::tuple<Tensor, Tensor> neighborhood_aggregate_backward(const Tensor& grad_out,
                                                           const Tensor& weight,
                                                           const Tensor& value, int64_t kernel_size,
                                                           int64_t dilation) {
  const c10::cuda::CUDAGuard guard(value.device());
  Tensor d_weight = at::empty_like(weight);
  Tensor d_value = at::empty_like(value);
  if (value.numel() == 0) return {d_weight, d_value};
  const AggregateSizes sizes = aggregate_sizes(value, kernel_size, dilation);
  dispatch(value, [&](auto zero) {
    using T = decltype(zero);
    launch<T>(weight_grad_kernel<T>, sizes, grad_out, value, d_weight);
    launch<T>(value_grad_kernel<T>, sizes, grad_out, weight, d_value);
  });
  return {d_weight, d_value};
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CUDA, m) {
  m.impl("neighborhood_aggregate_forward", &neighborhood_aggregate_forward);
  m.impl("neighborhood_aggregate_backward", &neighborhood_aggregate_backward);
}

}  // namespace overlock
