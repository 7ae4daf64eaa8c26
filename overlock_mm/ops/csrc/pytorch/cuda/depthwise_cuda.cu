// CUDA backend of the depthwise operators: launches on the current stream.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/string_view.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../../common/cuda/depthwise.cuh"

namespace overlock {
namespace {

using at::Tensor;

template <int K, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads) depthwise_kernel(DepthwiseCall<T> a) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  depthwise_block<K>(block, a, blockIdx.x, reinterpret_cast<float*>(shared));
}

template <int K, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads)
    depthwise_norm_kernel(DepthwiseCall<T> a, DepthwiseNorm<T> norm) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  depthwise_norm_block<K>(block, a, norm, blockIdx.x, reinterpret_cast<float*>(shared));
}

template <int K, typename... Parameters, typename... Values>
void launch(void (*kernel)(Parameters...), int64_t blocks, Values... values) {
  const int64_t bytes =
      DepthwiseMemory::of<K>(nullptr).floats * static_cast<int64_t>(sizeof(float));
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "depthwise_conv2d (cuda): the map needs ",
              blocks, " thread blocks, and a launch takes 2^31 - 1; split the batch.");
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  kernel<<<static_cast<unsigned>(blocks), kDepthwiseThreads, bytes, stream>>>(values...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
ChannelMap<const T> input_map(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

template <typename T>
ChannelMap<T> output_map(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

// A contiguous parameter [C], which must outlive the launch, or none.
struct Parameter {
  Tensor tensor;

  explicit Parameter(const std::optional<Tensor>& parameter) {
    if (parameter.has_value()) tensor = parameter->contiguous();
  }
  template <typename T>
  const T* data() const {
    return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
  }
};

Tensor new_map(const Tensor& x) {
  return at::empty_like(x, x.options(), at::MemoryFormat::ChannelsLast);
}

template <typename T>
DepthwiseCall<T> describe(const Tensor& x, const Tensor& weight, const Parameter& bias,
                          const Tensor& y) {
  DepthwiseCall<T> call{};
  call.x = input_map<T>(x);
  call.weight = input_map<T>(weight);
  call.bias = bias.data<T>();
  call.y = output_map<T>(y);
  call.batches = x.size(0);
  call.channels = x.size(1);
  call.height = static_cast<int>(x.size(2));
  call.width = static_cast<int>(x.size(3));
  return call;
}

// Calls run(T(), K) for the dtype of the map and the size of the kernel, K a constant.
template <typename Run>
void dispatch(const Tensor& x, const Tensor& weight, Run run) {
  const auto with_size = [&](auto zero) {
    const auto with = [&](auto size) { run(zero, size); };
    switch (weight.size(2)) {
      case 3:
        return with(std::integral_constant<int, 3>());
      case 5:
        return with(std::integral_constant<int, 5>());
      case 7:
        return with(std::integral_constant<int, 7>());
      case 9:
        return with(std::integral_constant<int, 9>());
      case 11:
        return with(std::integral_constant<int, 11>());
      case 13:
        return with(std::integral_constant<int, 13>());
      case 15:
        return with(std::integral_constant<int, 15>());
      case 17:
        return with(std::integral_constant<int, 17>());
    }
    TORCH_CHECK(false, "kernel size ", weight.size(2), " was not checked");
  };
  AT_DISPATCH_SWITCH(x.scalar_type(), "depthwise_conv2d (cuda)",
                     AT_DISPATCH_CASE(at::kFloat, [&] { with_size(scalar_t()); })
                         AT_DISPATCH_CASE(at::kHalf, [&] { with_size(scalar_t()); })
                             AT_DISPATCH_CASE(at::kBFloat16, [&] { with_size(scalar_t()); }));
}

// The convolution; `sums` [B, tiles, C], or undefined, takes sums of y or of its squares.
Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& input_bias, const std::optional<Tensor>& addend,
                   bool gelu_input, bool gelu_output, Tensor* sums, bool squares) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Parameter contiguous_bias(bias), contiguous_input_bias(input_bias);
  const Tensor y = new_map(x);
  dispatch(x, weight, [&](auto zero, auto size) {
    using T = decltype(zero);
    constexpr int K = decltype(size)::value;
    DepthwiseCall<T> call = describe<T>(x, weight, contiguous_bias, y);
    call.input_bias = contiguous_input_bias.template data<T>();
    if (addend.has_value()) call.addend = input_map<T>(*addend);
    call.gelu_input = gelu_input;
    call.gelu_output = gelu_output;
    call.squares = squares;
    if (sums != nullptr) {
      *sums = at::empty({call.batches, call.tiles(), call.channels}, x.options().dtype(at::kFloat));
      call.sums = sums->template mutable_data_ptr<float>();
    }
    launch<K>(depthwise_kernel<K, T>, call.batches * call.tiles() * call.slices(), call);
  });
  return y;
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& input_bias,
                        const std::optional<Tensor>& addend, bool gelu_input, bool gelu_output) {
  return convolution(x, weight, bias, input_bias, addend, gelu_input, gelu_output, nullptr, false);
}

std::tuple<Tensor, Tensor> depthwise_conv2d_stats(const Tensor& x, const Tensor& weight,
                                                  const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& input_bias,
                                                  const std::optional<Tensor>& addend,
                                                  bool gelu_input, c10::string_view stat) {
  const bool norm = stat == "norm";
  Tensor sums;
  const Tensor y = convolution(x, weight, bias, input_bias, addend, gelu_input, false, &sums, norm);
  const Tensor total = sums.sum(1);
  return {y, norm ? total.sqrt() : total.div(x.size(2) * x.size(3))};
}

std::tuple<Tensor, Tensor> depthwise_conv2d_norm(const Tensor& x, const Tensor& weight,
                                                 const std::optional<Tensor>& bias,
                                                 const Tensor& norm_weight, const Tensor& norm_bias,
                                                 double eps,
                                                 const std::optional<Tensor>& skip_weight,
                                                 const std::optional<Tensor>& skip_bias) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Parameter contiguous_bias(bias), scale(norm_weight), shift(norm_bias),
      skip_scale(skip_weight), skip_shift(skip_bias);
  const Tensor y = new_map(x), normed = new_map(x);
  dispatch(x, weight, [&](auto zero, auto size) {
    using T = decltype(zero);
    constexpr int K = decltype(size)::value;
    const DepthwiseCall<T> call = describe<T>(x, weight, contiguous_bias, y);
    const DepthwiseNorm<T> norm{scale.template data<T>(),      shift.template data<T>(),
                                skip_scale.template data<T>(), skip_shift.template data<T>(),
                                output_map<T>(normed),         static_cast<float>(eps)};
    launch<K>(depthwise_norm_kernel<K, T>, call.batches * call.tiles(), call, norm);
  });
  return {y, normed};
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CUDA, m) {
  m.impl("depthwise_conv2d", &depthwise_conv2d);
  m.impl("depthwise_conv2d_norm", &depthwise_conv2d_norm);
  m.impl("depthwise_conv2d_stats", &depthwise_conv2d_stats);
}

}  // namespace overlock
