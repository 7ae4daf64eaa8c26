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

// Two warps on a quarter of a multiprocessor leave a thread all the registers that it can have.
template <int K, bool kWide, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 4) depthwise_kernel(DepthwiseCall<T> a) {
  __shared__ float shared[kDepthwiseShared];
  DeviceBlock block;
  depthwise_block<K, kWide>(block, a, blockIdx.x, shared);
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) depthwise_norm_kernel(DepthwiseNorm<T> a) {
  __shared__ float shared[kNormShared];
  DeviceBlock block;
  depthwise_norm_block(block, a, blockIdx.x, shared);
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), int64_t blocks, int threads, const Arguments& arguments) {
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "depthwise_conv2d (cuda): the map needs ",
              blocks, " thread blocks, and a launch takes 2^31 - 1; split the batch.");
  const auto stream = c10::cuda::getCurrentCUDAStream();
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// The map with adjacent channels, itself if it has them.
Tensor with_adjacent_channels(const Tensor& map) {
  if (map.stride(1) == 1 || map.size(1) == 1) return map;
  return map.contiguous(at::MemoryFormat::ChannelsLast);
}

template <typename T>
ChannelMap<const T> input_map(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(2), tensor.stride(3)};
}

template <typename T>
ChannelMap<T> output_map(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), tensor.stride(0), tensor.stride(2), tensor.stride(3)};
}

// Whether eight channels of every pixel, from a multiple of eight on, start at a multiple of 16
// bytes.
template <typename T>
bool is_wide(const ChannelMap<T>& map) {
  const int64_t step = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && map.batch % step == 0 &&
         map.row % step == 0 && map.column % step == 0;
}

template <typename T>
bool is_wide(const DepthwiseCall<T>& call) {
  const auto aligned = [](const T* parameter) {
    return reinterpret_cast<uintptr_t>(parameter) % 16 == 0;
  };
  return call.channels % kThreadChannels == 0 && is_wide(call.x) && is_wide(call.addend) &&
         is_wide(call.y) && aligned(call.weight) && aligned(call.bias) && aligned(call.input_bias);
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

// Calls run(T()) for the dtype of the map.
template <typename Run>
void with_dtype(const Tensor& x, Run run) {
  AT_DISPATCH_SWITCH(x.scalar_type(), "depthwise_conv2d (cuda)",
                     AT_DISPATCH_CASE(at::kFloat, [&] { run(scalar_t()); })
                         AT_DISPATCH_CASE(at::kHalf, [&] { run(scalar_t()); })
                             AT_DISPATCH_CASE(at::kBFloat16, [&] { run(scalar_t()); }));
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
  with_dtype(x, with_size);
}

// The convolution; `sums` [B, tiles, C], or undefined, takes sums of y or of its squares.
Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& input_bias, const std::optional<Tensor>& addend,
                   bool gelu_input, bool gelu_output, Tensor* sums, bool squares) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Parameter contiguous_bias(bias), contiguous_input_bias(input_bias);
  const Tensor taps = weight.squeeze(1).permute({1, 2, 0}).contiguous();
  const Tensor in = with_adjacent_channels(x), y = new_map(x);
  const Tensor added = addend.has_value() ? with_adjacent_channels(*addend) : Tensor();
  dispatch(x, weight, [&](auto zero, auto size) {
    using T = decltype(zero);
    constexpr int K = decltype(size)::value;
    DepthwiseCall<T> call{};
    call.x = input_map<T>(in);
    call.weight = taps.template const_data_ptr<T>();
    call.bias = contiguous_bias.template data<T>();
    call.input_bias = contiguous_input_bias.template data<T>();
    call.y = output_map<T>(y);
    call.batches = x.size(0);
    call.channels = x.size(1);
    call.height = static_cast<int>(x.size(2));
    call.width = static_cast<int>(x.size(3));
    if (added.defined()) call.addend = input_map<T>(added);
    call.gelu_input = gelu_input;
    call.gelu_output = gelu_output;
    call.squares = squares;
    if (sums != nullptr) {
      *sums = at::empty({call.batches, call.tiles(), call.channels}, x.options().dtype(at::kFloat));
      call.sums = sums->template mutable_data_ptr<float>();
    }
    const bool wide = is_wide(call) && (kHasInputWork<K, true> || !call.has_input_work());
    const auto kernel = wide ? depthwise_kernel<K, true, T> : depthwise_kernel<K, false, T>;
    launch(kernel, call.batches * call.tiles() * call.slices(), kDepthwiseThreads, call);
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
  const Parameter scale(norm_weight), shift(norm_bias), skip_scale(skip_weight),
      skip_shift(skip_bias);
  const Tensor y =
      convolution(x, weight, bias, std::nullopt, std::nullopt, false, false, nullptr, false);
  const Tensor normed = new_map(x);
  with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const DepthwiseNorm<T> norm{y.template mutable_data_ptr<T>(),
                                scale.template data<T>(),
                                shift.template data<T>(),
                                skip_scale.template data<T>(),
                                skip_shift.template data<T>(),
                                normed.template mutable_data_ptr<T>(),
                                x.numel() / x.size(1),
                                x.size(1),
                                static_cast<float>(eps)};
    launch(depthwise_norm_kernel<T>, norm.blocks(), kNormThreads, norm);
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
