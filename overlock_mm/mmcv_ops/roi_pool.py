"""RoIPool (Girshick, Fast R-CNN, ICCV 2015) as mmcv defines it, which is not torchvision's.

A bin covers every pixel that it touches, a RoI includes its last pixel, and one without an area
pools nothing: its output is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, widened

_FAMILY = Family(('RoIPool', 'roi_pool'), 'torch')

#: Values that are looked at together at most, of 4 bytes each.
_CHUNK = 2**24


@_FAMILY.operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of each bin.

    Args:
        input: (N, C, H, W).
        rois: (R, 5), index of the image and (x1, y1, x2, y2).
        output: (R, C, pooled_height, pooled_width), receives the result.
        argmax: Tensor of the same shape, int32, that receives the pixel of the maximum in the
            flattened map, or -1.
        pooled_height: Bins of a column.
        pooled_width: Bins of a row.
        spatial_scale: Pixels of the input for a pixel of the image.
    """
    channels, height, width = input.shape[1:]
    _, boxes = widened(input, rois)
    images = boxes[:, 0].long()
    rows, row_inside = _pixels_of_bins(boxes[:, [2, 4]], pooled_height, height, spatial_scale)
    columns, column_inside = _pixels_of_bins(boxes[:, [1, 3]], pooled_width, width, spatial_scale)
    # A RoI without an area along one side is empty along the other, too.
    alive = row_inside.any(-1).any(-1) & column_inside.any(-1).any(-1)
    row_inside &= alive[:, None, None]
    step = max(1, _CHUNK // max(1, channels * height * columns[0].numel())) if len(boxes) else 1
    for part in torch.arange(len(boxes), device=input.device).split(step):
        # Columns first, so that the first of equal values in reading order is chosen.
        value, across = _max_of_bins(input[images[part]], columns[part], column_inside[part])
        value, down = _max_of_bins(value.transpose(2, 3), rows[part], row_inside[part])
        value, down = value.transpose(2, 3), down.transpose(2, 3)
        pixel = down * width + across.gather(2, down)
        empty = value == -torch.inf
        output[part] = value.masked_fill(empty, 0)
        argmax[part] = pixel.masked_fill(empty, -1).to(argmax.dtype)


@_FAMILY.operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Derivative of :func:`roi_pool_forward` by its input, into ``grad_input`` of (N, C, H, W)."""
    (grad,) = widened(grad_output)
    images, channels = grad_input.shape[:2]
    maps = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    area = grad_input.shape[2] * grad_input.shape[3]
    indices = maps[:, :, None, None] * area + argmax.clamp(min=0)
    result = grad.new_zeros(images * channels * area)
    result.index_add_(0, indices.flatten(), (grad * (argmax >= 0)).flatten())
    grad_input.copy_(result.view_as(grad_input))


def _pixels_of_bins(limits: Tensor, bins: int, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the pixels that the bins of each RoI cover along one side.

    Args:
        limits: (R, 2), first and last pixel of each RoI, in pixels of the image.
        bins: Their number.
        size: Size of the feature map along this side.
        scale: Pixels of the feature map for one of the image.

    Returns:
        Indices (R, bins, most pixels of a bin), and whether they lie in the bin.
    """
    start = limits[:, :1] * scale
    extent = (limits[:, 1:] + 1) * scale - start
    number = torch.arange(bins, device=limits.device)
    first = (number * (extent / bins) + start).floor().clamp(0, size).long()
    stop = ((number + 1) * (extent / bins) + start).ceil().clamp(0, size).long()
    stop = torch.where(extent > 0, stop, first)
    most = max(1, int((stop - first).max())) if limits.numel() else 1
    pixels = first[..., None] + torch.arange(most, device=limits.device)
    return pixels.clamp(max=size - 1), pixels < stop[..., None]


def _max_of_bins(features: Tensor, pixels: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum along the last side within each bin, -inf where a bin is empty.

    Args:
        features: (R, C, H, W).
        pixels: (R, bins, P), indices along W.
        inside: Mask of that shape.

    Returns:
        Values and indices along W, both (R, C, H, bins).
    """
    shape = (*features.shape[:3], -1)
    index = pixels.flatten(1)[:, None, None].expand(shape)
    values = features.gather(3, index).unflatten(3, pixels.shape[1:])
    values = values.masked_fill(~inside[:, None, None], -torch.inf)
    best, where = values.max(-1)
    return best, index.unflatten(3, pixels.shape[1:]).gather(4, where[..., None])[..., 0]
