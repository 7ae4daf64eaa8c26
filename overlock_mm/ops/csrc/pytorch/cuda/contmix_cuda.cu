// CUDA backend of contmix: launches the kernels of common/cuda on the current stream.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../../common/cuda/contmix_forward.cuh"
#include "../../common/cuda/contmix_token_grad.cuh"
#include "../../common/cuda/contmix_value_grad.cuh"

namespace overlock {
namespace {

using at::Tensor;

// Blocks of the kernel in which each block writes one partial sum of the parameter gradients:
// two for each multiprocessor of the largest GPUs.
constexpr int64_t kPartialSums = 264;

template <int CP, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Arguments<T> a, Map<T> out, float* logsumexp) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  forward_block<CP>(block, a, out, logsumexp, blockIdx.x, reinterpret_cast<float*>(shared));
}

template <int CP, typename T>
__global__ void __launch_bounds__(kThreads)
    token_grad_kernel(Arguments<T> a, TokenGradients<T> gradients) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  token_grad_block<CP>(block, a, gradients, blockIdx.x, reinterpret_cast<float*>(shared));
}

template <int CP, typename T>
__global__ void __launch_bounds__(kThreads)
    value_grad_kernel(Arguments<T> a, Map<const T> grad_out, const float* logsumexp,
                      Map<T> d_value) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  value_grad_block<CP>(block, a, grad_out, logsumexp, d_value, blockIdx.x,
                       reinterpret_cast<float*>(shared));
}

template <typename... Parameters, typename... Values>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t floats, Values... values) {
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "contmix (cuda): the map needs ", blocks,
              " thread blocks, and a launch takes 2^31 - 1; split the batch.");
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(values...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// [B, G, C, H, W], or [B, G, C, S] for keys.
template <typename T>
Map<const T> input_map(const Tensor& tensor) {
  const bool keys = tensor.dim() == 4;
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1),
          tensor.stride(2),           tensor.stride(3), keys ? 0 : tensor.stride(4)};
}

template <typename T>
Map<T> output_map(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3),
          tensor.stride(4)};
}

// Parameters in the layout of the kernels: contiguous float32, regions padded with zeros.
struct Parameters {
  Tensor weight, bias, rpb;

  Parameters(const Tensor& proj_weight, const Tensor& proj_bias, const Tensor& position_bias)
      : weight(at::zeros({proj_weight.size(0), kRegions}, proj_weight.options().dtype(at::kFloat))),
        bias(proj_bias.to(at::kFloat).contiguous()),
        rpb(position_bias.to(at::kFloat).contiguous()) {
    weight.narrow(1, 0, proj_weight.size(1)).copy_(proj_weight);
  }
};

template <typename T>
Arguments<T> arguments(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Parameters& parameters, int64_t kernel_size, double scale) {
  return {input_map<T>(query),
          input_map<T>(value),
          input_map<T>(key),
          parameters.weight.const_data_ptr<float>(),
          parameters.bias.const_data_ptr<float>(),
          parameters.rpb.const_data_ptr<float>(),
          value.size(0),
          value.size(1),
          static_cast<int>(query.size(2)),
          static_cast<int>(value.size(2)),
          static_cast<int>(key.size(3)),
          static_cast<int>(value.size(3)),
          static_cast<int>(value.size(4)),
          static_cast<int>(kernel_size),
          static_cast<float>(scale)};
}

void check_sizes(const Tensor& key, const Tensor& value) {
  TORCH_CHECK(key.size(3) <= kRegions, "contmix (cuda): S must be at most ", kRegions, ", got ",
              key.size(3), ".");
  TORCH_CHECK(key.size(2) <= 32 && value.size(2) <= 32,
              "contmix (cuda): Cq and C must be at most 32, got ", key.size(2), " and ",
              value.size(2), ".");
}

// Calls run(T(), integral constant CP) for the dtype and the padded channels of the values.
template <typename Run>
void dispatch(const Tensor& value, Run run) {
  const auto with_channels = [&](auto zero) {
    if (value.size(2) <= 8) {
      run(zero, std::integral_constant<int, 8>());
    } else if (value.size(2) <= 16) {
      run(zero, std::integral_constant<int, 16>());
    } else {
      run(zero, std::integral_constant<int, 32>());
    }
  };
  AT_DISPATCH_SWITCH(value.scalar_type(), "contmix (cuda)",
                     AT_DISPATCH_CASE(at::kFloat, [&] { with_channels(scalar_t()); })
                         AT_DISPATCH_CASE(at::kHalf, [&] { with_channels(scalar_t()); })
                             AT_DISPATCH_CASE(at::kBFloat16, [&] { with_channels(scalar_t()); }));
}

std::tuple<Tensor, Tensor> contmix_forward(const Tensor& query, const Tensor& key,
                                           const Tensor& value, const Tensor& proj_weight,
                                           const Tensor& proj_bias, const Tensor& rpb,
                                           int64_t kernel_size, double scale) {
  const c10::cuda::CUDAGuard guard(value.device());
  check_sizes(key, value);
  Tensor out = at::empty_like(value);
  Tensor logsumexp = at::empty({value.size(0), value.size(1), value.size(3), value.size(4)},
                               value.options().dtype(at::kFloat));
  if (value.numel() == 0) return {out, logsumexp};
  const Parameters parameters(proj_weight, proj_bias, rpb);
  dispatch(value, [&](auto zero, auto channels) {
    using T = decltype(zero);
    constexpr int CP = decltype(channels)::value;
    const auto a = arguments<T>(query, key, value, parameters, kernel_size, scale);
    launch(forward_kernel<CP, T>, a.batches * a.groups * a.tiles(),
           ForwardMemory<CP, T>(a, nullptr).floats, a, output_map<T>(out),
           logsumexp.mutable_data_ptr<float>());
  });
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> contmix_backward(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& proj_weight, const Tensor& proj_bias, const Tensor& rpb, const Tensor& out,
    const Tensor& logsumexp, int64_t kernel_size, double scale) {
  const c10::cuda::CUDAGuard guard(value.device());
  check_sizes(key, value);
  Tensor d_query = at::empty_like(query);
  Tensor d_value = at::empty_like(value);
  if (value.numel() == 0) {
    return {d_query,
            at::zeros_like(key),
            d_value,
            at::zeros_like(proj_weight),
            at::zeros_like(proj_bias),
            at::zeros_like(rpb)};
  }
  const Parameters parameters(proj_weight, proj_bias, rpb);
  const Tensor lse = logsumexp.contiguous();
  const auto options = value.options().dtype(at::kFloat);
  const int64_t groups = value.size(1);
  const int64_t side = 2 * kernel_size - 1;
  Tensor d_key, d_projection, d_rpb;
  dispatch(value, [&](auto zero, auto channels) {
    using T = decltype(zero);
    constexpr int CP = decltype(channels)::value;
    const auto a = arguments<T>(query, key, value, parameters, kernel_size, scale);
    const int64_t chunks = std::clamp<int64_t>(kPartialSums / groups, 1, a.batches * a.tiles());
    d_key = at::empty({a.batches, groups, a.tiles(), key.size(2), key.size(3)}, options);
    d_projection = at::zeros({chunks, groups, kernel_size * kernel_size, kRegionStride}, options);
    d_rpb = at::zeros({chunks, groups, side, side}, options);
    const TokenGradients<T> gradients = {
        input_map<T>(grad_out),          input_map<T>(out),
        lse.const_data_ptr<float>(),     output_map<T>(d_query),
        d_key.mutable_data_ptr<float>(), d_projection.mutable_data_ptr<float>(),
        d_rpb.mutable_data_ptr<float>(), chunks};
    launch(token_grad_kernel<CP, T>, chunks * groups, TokenGradMemory<CP, T>(a, nullptr).floats, a,
           gradients);
    launch(value_grad_kernel<CP, T>, a.batches * groups * a.tiles(),
           ValueGradMemory<CP, T>(a, nullptr).floats, a, gradients.grad_out, gradients.logsumexp,
           output_map<T>(d_value));
  });
  const Tensor d_parameters = d_projection.sum(at::IntArrayRef{0, 1});
  return {d_query,
          d_key.sum(2).to(key.scalar_type()),
          d_value,
          d_parameters.narrow(1, 0, key.size(3)).to(proj_weight.scalar_type()).contiguous(),
          d_parameters.select(1, kRegions).to(proj_bias.scalar_type()).contiguous(),
          d_rpb.sum(0).to(rpb.scalar_type())};
}

// Whether this binary holds code that the device can run: all kernels are compiled for the same
// architectures, so one represents all. A missing image would only be an error at the launch.
bool has_cuda_code(int64_t device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, forward_kernel<16, float>);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();  // clears the error, which the next call would report
    return false;
  }
  C10_CUDA_CHECK(error);
  return true;
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CompositeImplicitAutograd, m) {
  m.impl("has_cuda_code", &has_cuda_code);
}

TORCH_LIBRARY_IMPL(overlock_mm_C, CUDA, m) {
  m.impl("contmix_forward", &contmix_forward);
  m.impl("contmix_backward", &contmix_backward);
}

}  // namespace overlock
