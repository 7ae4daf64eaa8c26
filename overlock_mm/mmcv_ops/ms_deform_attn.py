"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021).

mmcv calls these for tensors on a GPU; on the CPU it has a function of its own. Level by level, so
that the samples of only one are held. Points outside a map count as 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, widened

_FAMILY = Family(('MultiScaleDeformableAttention',), 'torch')


@_FAMILY.operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sums of samples.

    Args:
        value: (N, pixels of all levels, heads, C).
        value_spatial_shapes: (levels, 2), height and width of each map, int64.
        value_level_start_index: (levels,), where each begins among the pixels, int64.
        sampling_locations: (N, queries, heads, levels, points, 2), x and y, from 0 to 1.
        attention_weights: (N, queries, heads, levels, points).
        im2col_step: Not used.

    Returns:
        (N, queries, heads * C).
    """
    values, locations, weights = widened(value, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    queries = locations.size(1)
    output = values.new_zeros(batch * heads, channels, queries)
    for level, size, pixels in _levels(value_spatial_shapes, value_level_start_index):
        output += _sum_of_samples(
            values[:, pixels], size, locations[:, :, :, level], weights[:, :, :, level]
        )
    output = output.view(batch, heads * channels, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


@_FAMILY.operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Derivatives of :func:`ms_deform_attn_forward`.

    Args:
        value: The argument of the forward operator.
        value_spatial_shapes: The argument of the forward operator.
        value_level_start_index: The argument of the forward operator.
        sampling_locations: The argument of the forward operator.
        attention_weights: The argument of the forward operator.
        grad_output: (N, queries, heads * C).
        grad_value: Receives the derivative by the values, in their shape.
        grad_sampling_loc: Receives the one by the locations.
        grad_attn_weight: Receives the one by the weights.
        im2col_step: Not used.
    """
    values, locations, weights, grad = widened(
        value, sampling_locations, attention_weights, grad_output
    )
    grad = grad.unflatten(2, value.shape[2:]).permute(0, 2, 3, 1).flatten(0, 1)
    for level, size, pixels in _levels(value_spatial_shapes, value_level_start_index):
        parts = values[:, pixels], locations[:, :, :, level], weights[:, :, :, level]
        value_part, at, share = (part.detach().requires_grad_() for part in parts)
        with torch.enable_grad():
            output = _sum_of_samples(value_part, size, at, share)
        by_value, by_location, by_weight = torch.autograd.grad(
            output, (value_part, at, share), grad
        )
        grad_value[:, pixels] = by_value.to(grad_value.dtype)
        grad_sampling_loc[:, :, :, level] = by_location.to(grad_sampling_loc.dtype)
        grad_attn_weight[:, :, :, level] = by_weight.to(grad_attn_weight.dtype)


def _levels(shapes: Tensor, starts: Tensor) -> list[tuple[int, tuple[int, int], slice]]:
    """Index, (height, width) and pixels of each level."""
    sizes = zip(shapes.tolist(), starts.tolist(), strict=True)
    return [
        (level, (height, width), slice(start, start + height * width))
        for level, ((height, width), start) in enumerate(sizes)
    ]


def _sum_of_samples(
    value: Tensor, size: tuple[int, int], locations: Tensor, weights: Tensor
) -> Tensor:
    """One level of attention.

    Args:
        value: (N, H * W, heads, C).
        size: H and W.
        locations: (N, queries, heads, points, 2).
        weights: (N, queries, heads, points).

    Returns:
        (N * heads, C, queries).
    """
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
    grid = 2 * locations.transpose(1, 2).flatten(0, 1) - 1
    samples = F.grid_sample(maps, grid, padding_mode='zeros', align_corners=False)
    return (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
