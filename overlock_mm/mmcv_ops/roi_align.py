"""RoIAlign (He et al., ICCV 2017), with average or maximum in each bin.

Averages are torchvision's. Bins without a sampling point (RoIs without an area, where the number of
points follows from the size) are 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from overlock_mm.mmcv_ops.bilinear import accumulate, corners, sample
from overlock_mm.mmcv_ops.registry import Family, torchvision_operator, widened

_FAMILY = Family(
    ('RoIAlign', 'roi_align'),
    'torchvision',
    'Maxima only: a bin without a sampling point is 0, not -10000; a maximum in row -1 has a '
    'gradient; in float16 the maximum is that of float32.',
)

#: ``pool_mode`` in mmcv: 0 is the maximum, 1 the average.
_MAXIMUM = 0
#: Coordinates of a bin without a sampling point, outside every map.
_NOWHERE = -2


@_FAMILY.operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool RoIs to one size.

    Args:
        input: (N, C, H, W).
        rois: (R, 5), index of the image and (x1, y1, x2, y2).
        output: (R, C, aligned_height, aligned_width), receives the result.
        argmax_y: Tensor of the same shape that receives the row of the maximum; empty for averages.
        argmax_x: The same for its column.
        aligned_height: Bins of a column.
        aligned_width: Bins of a row.
        spatial_scale: Pixels of the input for a pixel of the image.
        sampling_ratio: Points along each side of a bin; 0 takes one for each pixel.
        pool_mode: 0 for maxima, 1 for averages.
        aligned: Whether pixel centres are half a pixel from the border.
    """
    features, boxes = widened(input, rois)
    if pool_mode != _MAXIMUM:
        pooled = torchvision_operator('roi_align')(
            features,
            boxes,
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
        output.copy_(pooled)
        return
    size = (aligned_height, aligned_width)
    for index, box in enumerate(boxes):
        y, x = _sampling_points(box, size, spatial_scale, sampling_ratio, aligned)
        if not (len(y) and len(x)):
            output[index] = 0
            argmax_y[index] = argmax_x[index] = _NOWHERE
            continue
        feature = features[int(box[0])]
        grid_y, grid_x = torch.meshgrid(y, x, indexing='ij')
        values = sample(feature, corners(grid_y, grid_x, *feature.shape[1:]))
        # (C, bin rows * points, bin columns * points) -> (C, bin rows, bin columns, points)
        points = (len(y) // aligned_height, len(x) // aligned_width)
        values, grid_y, grid_x = (_by_bin(grid, size, points) for grid in (values, grid_y, grid_x))
        best, where = values.max(-1)
        output[index] = best
        argmax_y[index] = grid_y.expand_as(values).gather(-1, where[..., None])[..., 0]
        argmax_x[index] = grid_x.expand_as(values).gather(-1, where[..., None])[..., 0]


@_FAMILY.operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Derivative of :func:`roi_align_forward` by its input, into ``grad_input`` of (N, C, H, W)."""
    grad, boxes = widened(grad_output, rois)
    if pool_mode != _MAXIMUM:
        result = torchvision_operator('_roi_align_backward')(
            grad,
            boxes,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
        grad_input.copy_(result)
        return
    height, width = grad_input.shape[2:]
    result = torch.zeros(grad_input.shape, dtype=grad.dtype, device=grad.device)
    for index, box in enumerate(boxes):
        around = corners(argmax_y[index].to(grad), argmax_x[index].to(grad), height, width)
        accumulate(result[int(box[0])], grad[index], around)
    grad_input.copy_(result)


def _sampling_points(
    box: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the points in a RoI."""
    start = box[[2, 1]] * scale - (0.5 if aligned else 0.0)
    extent = box[[4, 3]] * scale - (0.5 if aligned else 0.0) - start
    if not aligned:
        extent = extent.clamp(min=1)
    axes = []
    for axis, bins in enumerate(size):
        bin_size = extent[axis] / bins
        count = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_size.item()), 0)
        within = (torch.arange(count).to(box) + 0.5) * bin_size / max(count, 1)
        first = start[axis] + torch.arange(bins).to(box) * bin_size
        axes.append((first[:, None] + within).flatten())
    return axes[0], axes[1]


def _by_bin(grid: Tensor, size: tuple[int, int], points: tuple[int, int]) -> Tensor:
    split = grid.unflatten(-1, (size[1], points[1])).unflatten(-3, (size[0], points[0]))
    return split.transpose(-3, -2).flatten(-2)
