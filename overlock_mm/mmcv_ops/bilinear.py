"""Bilinear sampling of a feature map with the border rule of RoIAlign.

Pixel centres have whole coordinates. A point up to one pixel outside counts as the nearest point
of the border, one further outside as 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Corners(NamedTuple):
    """The four pixels around each point: indices into the flattened map, and weights."""

    indices: Tensor  # (4, *points), int64
    weights: Tensor  # (4, *points)


def corners(y: Tensor, x: Tensor, height: int, width: int) -> Corners:
    """Return the pixels and the (differentiable) weights with which points are interpolated.

    Args:
        y: Rows, of any shape.
        x: Columns, of that shape.
        height: Height of the feature map.
        width: Width of the feature map.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    up, back = 1 - down, 1 - across
    pixels = [
        top * width + left,
        top * width + right,
        bottom * width + left,
        bottom * width + right,
    ]
    weights = [up * back, up * across, down * back, down * across]
    return Corners(torch.stack(pixels).long(), torch.stack(weights) * inside)


def sample(feature: Tensor, around: Corners) -> Tensor:
    """Return values of a (C, H, W) map at the points, (C, *points); differentiable in both."""
    flat = feature.flatten(1)
    values = flat[:, around.indices.flatten()].unflatten(1, around.indices.shape)
    return (values * around.weights).sum(1)


def accumulate(grad_feature: Tensor, grad: Tensor, around: Corners) -> None:
    """Add to a (C, H, W) map, in place, the gradient of points that differ between channels.

    Args:
        grad_feature: (C, H, W), contiguous.
        grad: (C, *points), gradient of the values at the points.
        around: Values at the four corners of each point, (4, C, *points).
    """
    flat = grad_feature.view(grad_feature.size(0), -1)
    parts = (grad * around.weights).transpose(0, 1).flatten(1)
    flat.scatter_add_(1, around.indices.transpose(0, 1).flatten(1), parts)
