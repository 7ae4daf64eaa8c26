// The operators of which whole blocks are made, as functions: see fused_blocks_cpu.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace overlock {

at::Tensor depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias,
                            const std::optional<at::Tensor>& input_bias,
                            const std::optional<at::Tensor>& addend, bool gelu_input,
                            bool gelu_output);

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_norm(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps,
    const std::optional<at::Tensor>& skip_weight, const std::optional<at::Tensor>& skip_bias);

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_stats(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& addend,
    bool gelu_input, c10::string_view stat);

// Writes into `out`, which has the shape and dtype of `value` and strides of its own.
void contmix_into(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const at::Tensor& proj_weight, const at::Tensor& proj_bias, const at::Tensor& rpb,
                  int64_t kernel_size, double scale, const at::Tensor& out);

}  // namespace overlock
