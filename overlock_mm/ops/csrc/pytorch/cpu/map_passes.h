// Element-wise work of the fused blocks on maps [B, C, H, W], in one pass each. An ATen operator
// takes some 20 us for a map of 14 x 14 pixels, and there would be a dozen in a dynamic block.
//
// Maps are in channels_last memory, or channels of such a map. Numbers per sample and channel,
// [B, C], are in the type of arithmetic.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace overlock {

// map = map * factor + shift, in place.
//   factor [B, C]; shift: C numbers in the dtype of the map.
void scale_map(const at::Tensor& map, const at::Tensor& factor,
               const std::optional<at::Tensor>& shift = std::nullopt);

// map = map * silu(gate) * factor, in place.
//   factor [B, C].
void gate_map(const at::Tensor& map, const at::Tensor& gate,
              const std::optional<at::Tensor>& factor = std::nullopt);

// The L2 norm over the pixels, [B, C].
at::Tensor norm_of_map(const at::Tensor& map);

// The channels of x, then those of context * context_scale + prior * prior_scale + shift.
//   scales: these three, of one number per channel in the dtype of the maps. Without them, the
//   channels of the context follow unchanged.
at::Tensor join_maps(const at::Tensor& x, const at::Tensor& context, const at::Tensor& prior,
                     at::TensorList scales);

}  // namespace overlock
