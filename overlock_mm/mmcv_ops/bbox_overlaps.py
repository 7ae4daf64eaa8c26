"""Overlaps of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, widened

_FAMILY = Family(('bbox_overlaps',), 'torch')

#: ``mode`` in mmcv: 0 divides by the union, 1 by the area of the first box.
_IOU = 0


@_FAMILY.operator
def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Intersection over union or over the first box, NaN (as 0 / 0) of two without an area.

    Args:
        bboxes1: (M, 4) as (x1, y1, x2, y2).
        bboxes2: (N, 4).
        ious: (M, N), or (M,) if ``aligned``, receives the result.
        mode: 0 for the union, 1 for the first box.
        aligned: Whether to compare boxes of one row only; M and N are equal then.
        offset: 1 if the corners are pixels, so that a box is ``x2 - x1 + 1`` wide, else 0.
    """
    first, second = widened(bboxes1, bboxes2)
    if not aligned:
        first = first[:, None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(
        first[..., :2], second[..., :2]
    )
    inter = (sides + offset).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (first, second)]
    ious.copy_(inter / (areas[0] + areas[1] - inter if mode == _IOU else areas[0]))
