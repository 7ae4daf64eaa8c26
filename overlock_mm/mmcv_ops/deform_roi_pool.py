"""Deformable RoI pooling (Dai et al., ICCV 2017): averages in bins that are shifted one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.mmcv_ops.bilinear import corners
from overlock_mm.mmcv_ops.registry import Family, widened

_FAMILY = Family(
    ('DeformRoIPool', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'),
    'torch',
    'Points drawn to the border of the map, whose values do not change with the offset, have no '
    'derivative by it.',
)


@_FAMILY.operator
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Pool RoIs to one size.

    Args:
        input: (N, C, H, W).
        rois: (R, 5), index of the image and (x1, y1, x2, y2).
        offset: (R, 2, pooled_height, pooled_width), shifts of the bins, x before y, by which
            ``gamma`` times the width or height of the RoI is multiplied; empty for none.
        output: (R, C, pooled_height, pooled_width), receives the result.
        pooled_height: Bins of a column.
        pooled_width: Bins of a row.
        spatial_scale: Pixels of the input for a pixel of the image.
        sampling_ratio: Points along each side of a bin; 0 takes one for each pixel.
        gamma: See above.
    """
    features, boxes, shifts = widened(input, rois, offset)
    settings = (spatial_scale, sampling_ratio, gamma)
    output.copy_(_pool(features, boxes, shifts, (pooled_height, pooled_width), *settings))


@_FAMILY.operator
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Derivatives of :func:`deform_roi_pool_forward`.

    Args:
        grad_output: (R, C, pooled_height, pooled_width).
        input: The argument of the forward operator.
        rois: The argument of the forward operator.
        offset: The argument of the forward operator.
        grad_input: Receives the derivative by the input, in its shape.
        grad_offset: Receives the one by the offsets, in their shape.
        pooled_height: The argument of the forward operator.
        pooled_width: The argument of the forward operator.
        spatial_scale: The argument of the forward operator.
        sampling_ratio: The argument of the forward operator.
        gamma: The argument of the forward operator.
    """
    grad, features, boxes, shifts = widened(grad_output, input, rois, offset)
    leaves = features.requires_grad_(), shifts.requires_grad_()
    settings = (spatial_scale, sampling_ratio, gamma)
    with torch.enable_grad():
        pooled = _pool(features, boxes, shifts, (pooled_height, pooled_width), *settings)
    by_input, by_offset = torch.autograd.grad(pooled, leaves, grad, materialize_grads=True)
    grad_input.copy_(by_input)
    grad_offset.copy_(by_offset)


def _pool(
    features: Tensor,
    rois: Tensor,
    offset: Tensor,
    bins: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """(R, C, *bins), differentiable in features and offsets.

    The points of all bins stand in one list, bin by bin, as the words of bags in
    ``embedding_bag``, which sums weighted rows without holding them all.
    """
    device, number = features.device, bins[0] * bins[1]
    # Columns of both: along y, along x.
    start = rois[:, [2, 1]] * scale - 0.5
    extent = rois[:, [4, 3]] * scale - 0.5 - start
    step = extent / torch.tensor(bins).to(rois)
    points = step.ceil().clamp(min=0).long()
    if sampling_ratio > 0:
        points.fill_(sampling_ratio)
    start = start[:, None].expand(-1, number, -1)
    if offset.numel():
        start = start + gamma * extent[:, None] * offset.flip(1).flatten(2).transpose(1, 2)
    count = points.prod(1).repeat_interleave(number)
    bag = torch.arange(len(count), device=device).repeat_interleave(count)
    first = count.cumsum(0) - count
    within = torch.arange(len(bag), device=device) - first[bag]
    roi, place = bag // number, bag % number
    along = torch.stack([within // points[roi, 1], within % points[roi, 1]], 1)
    bin_index = torch.stack([place // bins[1], place % bins[1]], 1)
    share = (along.to(rois) + 0.5) / points[roi]
    at = start.flatten(0, 1)[bag] + (bin_index + share) * step[roi]
    images, channels, height, width = features.shape
    around = corners(at[:, 0], at[:, 1], height, width)
    pixels = around.indices + rois[roi, 0].long() * (height * width)
    pooled = F.embedding_bag(
        pixels.T.flatten(),
        features.permute(0, 2, 3, 1).reshape(-1, channels),
        4 * first,
        mode='sum',
        per_sample_weights=(around.weights / count[bag]).T.flatten(),
    )
    return pooled.view(len(rois), *bins, channels).permute(0, 3, 1, 2)
