// Blocks of the fused form in one call. Between the operators of a block, Python and its way
// through the dispatcher take as long as the operators themselves where maps are small.
//
// The definition is overlock_mm/deploy/folding.py, whose blocks call these functions where nothing
// but the result is needed; parameters come in the order of their method `operands`.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "block_operators.h"
#include "channel_factors.h"
#include "kept_memory.h"
#include "map_passes.h"

namespace overlock {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;
constexpr int64_t kRegionGrid = 7;

class Operands {
 public:
  explicit Operands(at::TensorList tensors) : tensors_(tensors) {}
  const at::Tensor& next() { return tensors_.at(position_++); }

 private:
  at::TensorList tensors_;
  size_t position_ = 0;
};

// oneDNN's product, which torch calls for compiled graphs only: see onednn_backend.py, which
// compares its schemas with those that are expected here.
at::Tensor onednn_product(const at::Tensor& rows, const at::Tensor& weight,
                          const OptionalTensor& added) {
  using Algorithm = std::optional<c10::string_view>;
  using Scalars = c10::List<std::optional<at::Scalar>>;
  if (added.has_value() && added->dim() > 1) {
    static const auto sum =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("mkldnn::_linear_pointwise", "binary")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                              const OptionalTensor&, c10::string_view)>();
    return sum.call(rows, *added, weight, std::nullopt, "add");
  }
  static const auto product =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                            c10::string_view, Scalars, Algorithm)>();
  return product.call(rows, weight, added, "none", Scalars(), "");
}

// rows [N, I] times weight [O, I], plus a bias [O] or rows [N, O] whose memory may be taken.
at::Tensor product(const at::Tensor& rows, const at::Tensor& weight, const OptionalTensor& added,
                   bool onednn) {
  if (onednn) {
    return onednn_product(rows, weight, added);
  }
  if (!added.has_value()) {
    return at::mm(rows, weight.t());
  }
  if (added->dim() == 1) {
    return at::addmm(*added, rows, weight.t());
  }
  at::Tensor sum = *added;
  return sum.addmm_(rows, weight.t());
}

at::Tensor pixels_of(const at::Tensor& map) { return map.permute({0, 2, 3, 1}); }

at::Tensor rows_of(const at::Tensor& map) { return pixels_of(map).reshape({-1, map.size(1)}); }

at::Tensor map_of(const at::Tensor& rows, const at::Tensor& like) {
  return rows.view({like.size(0), like.size(2), like.size(3), -1}).permute({0, 3, 1, 2});
}

// A 1 x 1 convolution.
at::Tensor pointwise(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                     bool onednn) {
  return map_of(product(rows_of(x), weight, bias, onednn), x);
}

// Whether a factor per channel of x goes into the matrix: where that is smaller than the map, and
// where no results of several samples would have to be put together afterwards.
bool scales_matrix(const at::Tensor& x, const at::Tensor& weight) {
  return x.size(0) == 1 && x.size(2) * x.size(3) >= 2 * weight.size(0);
}

// A 1 x 1 convolution of x * factor, plus `skip` if there is one. x and skip may be overwritten.
//   factor: [B, C] in the type of arithmetic, or none.
at::Tensor scaled_pointwise(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& factor, const OptionalTensor& skip, bool onednn) {
  OptionalTensor added;
  if (skip.has_value()) {
    added = rows_of(*skip);
  }
  at::Tensor matrix = weight;
  if (factor.has_value() && scales_matrix(x, weight)) {
    matrix = weight * factor->to(x.scalar_type());
  } else if (factor.has_value()) {
    scale_map(x, *factor);
  }
  return map_of(product(rows_of(x), matrix, added, onednn), x);
}

at::Tensor channel_gate_of(const at::Tensor& mean, Operands& operands) {
  const at::Tensor& squeeze = operands.next();
  const at::Tensor& squeeze_bias = operands.next();
  const at::Tensor& excite = operands.next();
  const at::Tensor& excite_bias = operands.next();
  return channel_gate(mean, squeeze, squeeze_bias, excite, excite_bias);
}

struct SkipAndBranch {
  at::Tensor skip, branch;
};

SkipAndBranch skip_norm(const at::Tensor& x, Operands& operands, double eps) {
  const at::Tensor& weight = operands.next();
  const at::Tensor& bias = operands.next();
  const at::Tensor& norm_weight = operands.next();
  const at::Tensor& norm_bias = operands.next();
  const at::Tensor& skip_weight = operands.next();
  const at::Tensor& skip_bias = operands.next();
  auto [skip, branch] =
      depthwise_conv2d_norm(x, weight, bias, norm_weight, norm_bias, eps, skip_weight, skip_bias);
  return {skip, branch};
}

// skip + mlp(x * factor)
at::Tensor mlp(const at::Tensor& skip, const at::Tensor& x, const OptionalTensor& factor,
               Operands& operands, bool onednn) {
  const at::Tensor& expand = operands.next();
  const at::Tensor& weight = operands.next();
  const at::Tensor& bias = operands.next();
  const at::Tensor& input_bias = operands.next();
  const at::Tensor& gamma = operands.next();
  const at::Tensor& reduce = operands.next();
  const at::Tensor expanded = scaled_pointwise(x, expand, factor, std::nullopt, onednn);
  const auto [hidden, norm] =
      depthwise_conv2d_stats(expanded, weight, bias, input_bias, std::nullopt, true, "norm");
  return scaled_pointwise(hidden, reduce, channel_response(norm, gamma), skip, onednn);
}

at::Tensor fused_block(const at::Tensor& x, at::TensorList parameters, double eps, bool onednn) {
  const KeepsMemory keeps_memory;
  Operands operands(parameters);
  const SkipAndBranch fork = skip_norm(x, operands, eps);
  const at::Tensor& weight = operands.next();
  const at::Tensor& bias = operands.next();
  const auto [y, mean] =
      depthwise_conv2d_stats(fork.branch, weight, bias, std::nullopt, std::nullopt, false, "mean");
  const at::Tensor gate = channel_gate_of(mean, operands);
  return mlp(fork.skip, y, gate, operands, onednn);
}

at::Tensor fusion(const at::Tensor& x, Operands& operands, bool onednn) {
  const at::Tensor& weight = operands.next();
  const at::Tensor& bias = operands.next();
  const at::Tensor& proj = operands.next();
  const at::Tensor& proj_bias = operands.next();
  const at::Tensor& gamma = operands.next();
  const at::Tensor& beta = operands.next();
  const at::Tensor y =
      pointwise(depthwise_conv2d(x, weight, bias, std::nullopt, std::nullopt, false, true), proj,
                proj_bias, onednn);
  scale_map(y, channel_response(norm_of_map(y), gamma), beta);
  return y;
}

// Maps smaller than the window are resized.
at::Tensor upsampled(const at::Tensor& x, const std::optional<std::array<int64_t, 2>>& size) {
  return size.has_value() ? at::upsample_bilinear2d(x, *size, false) : x;
}

at::Tensor mixed(const at::Tensor& query_map, const at::Tensor& key_map,
                 const at::Tensor& value_map, int64_t groups, at::IntArrayRef kernel_sizes,
                 at::IntArrayRef upsampled_size, Operands& operands, bool onednn) {
  const at::Tensor& query_weight = operands.next();
  const at::Tensor& query_bias = operands.next();
  const at::Tensor& key_weight = operands.next();
  const at::Tensor& key_bias = operands.next();
  const at::Tensor& proj_weight = operands.next();
  const at::Tensor& proj_bias = operands.next();
  const std::array<at::Tensor, 2> tables = {operands.next(), operands.next()};
  const at::Tensor& out_weight = operands.next();
  const at::Tensor& out_bias = operands.next();

  std::optional<std::array<int64_t, 2>> size;
  if (!upsampled_size.empty()) {
    size = {upsampled_size[0], upsampled_size[1]};
  }
  const at::Tensor value = upsampled(value_map, size).contiguous(kChannelsLast);
  const at::Tensor query = pointwise(upsampled(query_map, size), query_weight, query_bias, onednn)
                               .unflatten(1, {groups, -1});
  const at::Tensor regions =
      at::adaptive_avg_pool2d(upsampled(key_map, size), {kRegionGrid, kRegionGrid});
  const at::Tensor key =
      pointwise(regions, key_weight, key_bias, onednn).flatten(2).unflatten(1, {groups, -1});
  at::Tensor out = at::empty_like(value);
  const at::Tensor halves = value.unflatten(1, {2, groups, -1});
  const at::Tensor out_halves = out.unflatten(1, {2, groups, -1});
  const at::Tensor matrix = proj_weight.flatten(1);
  int64_t first = 0;
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t taps = kernel_sizes[i] * kernel_sizes[i];
    contmix_into(query, key, halves.select(1, i), matrix.narrow(0, first, taps),
                 proj_bias.narrow(0, first, taps), tables[i], kernel_sizes[i], 1.0,
                 out_halves.select(1, i));
    first += taps;
  }
  if (size.has_value()) {
    out = at::adaptive_avg_pool2d(out, {value_map.size(2), value_map.size(3)});
  }
  return pointwise(out, out_weight, out_bias, onednn);
}

at::Tensor fused_dynamic_block(const at::Tensor& x, const at::Tensor& context,
                               const at::Tensor& prior, at::TensorList context_scales,
                               at::TensorList parameters, at::ArrayRef<double> eps,
                               at::IntArrayRef split_sizes, int64_t groups,
                               at::IntArrayRef kernel_sizes, at::IntArrayRef upsampled_size,
                               bool onednn) {
  const KeepsMemory keeps_memory;
  Operands operands(parameters);
  const SkipAndBranch fork =
      skip_norm(join_maps(x, context, prior, context_scales), operands, eps[0]);
  const at::Tensor fused = fusion(fork.branch, operands, onednn);
  const at::Tensor& gate_weight = operands.next();
  const at::Tensor& gate_bias = operands.next();
  const at::Tensor& weight = operands.next();
  const at::Tensor& bias = operands.next();
  const std::vector<at::Tensor> parts = fork.branch.split_with_sizes(split_sizes, 1);
  const at::Tensor mix =
      mixed(parts[0], parts[1], fused, groups, kernel_sizes, upsampled_size, operands, onednn);
  const auto [y, mean] =
      depthwise_conv2d_stats(fused, weight, bias, std::nullopt, mix, false, "mean");
  const at::Tensor gate = pointwise(fused, gate_weight, gate_bias, onednn);
  OptionalTensor factor = channel_gate_of(mean, operands);
  const at::Tensor& out_weight = operands.next();
  if (scales_matrix(y, out_weight)) {
    gate_map(y, gate);
  } else {
    gate_map(y, gate, std::exchange(factor, std::nullopt));
  }
  const at::Tensor z = scaled_pointwise(y, out_weight, factor, fork.skip, onednn);

  const SkipAndBranch second = skip_norm(z, operands, eps[1]);
  return mlp(second.skip, second.branch, std::nullopt, operands, onednn);
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CPU, m) {
  m.impl("fused_block", &fused_block);
  m.impl("fused_dynamic_block", &fused_dynamic_block);
}

}  // namespace overlock
