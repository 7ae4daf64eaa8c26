"""The masks of PSANet (Zhao et al., ECCV 2018): from relative to absolute positions."""

from __future__ import annotations

import torch
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family

_FAMILY = Family(('PSAMask',), 'torch')

#: ``psa_type`` in mmcv: 0 collects, 1 distributes.
_COLLECT = 0


@_FAMILY.operator
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spread the weights that each pixel has for those around it over the map.

    Args:
        input: (N, h_mask * w_mask, H, W), weights by distance.
        output: (N, H * W, H, W), receives them by place; those out of reach are 0. Channels are
            the other pixels where the weights collect, and the pixel itself where they distribute.
        psa_type: 0 to collect, 1 to distribute.
        num_: N.
        h_feature: H.
        w_feature: W.
        h_mask: Rows of distances.
        w_mask: Columns of distances.
        half_h_mask: The row of distance 0.
        half_w_mask: The column of distance 0.
    """
    size = (h_feature, w_feature)
    rows, columns = (
        _steps(feature, feature, -1, half, input)
        for feature, half in zip(size, (half_h_mask, half_w_mask), strict=True)
    )
    by_place = _pick(input.unflatten(1, (h_mask, w_mask)), rows, columns)
    if psa_type != _COLLECT:
        by_place = by_place.permute(0, 3, 4, 1, 2)
    output.copy_(by_place.flatten(1, 2))


@_FAMILY.operator
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Derivative of :func:`psamask_forward` by its input, into ``grad_input`` of its shape."""
    by_place = grad_output.unflatten(1, (h_feature, w_feature))
    if psa_type != _COLLECT:
        by_place = by_place.permute(0, 3, 4, 1, 2)
    rows = _steps(h_mask, h_feature, 1, -half_h_mask, grad_output)
    columns = _steps(w_mask, w_feature, 1, -half_w_mask, grad_output)
    grad_input.copy_(_pick(by_place, rows, columns).flatten(1, 2))


def _steps(number: int, size: int, sign: int, shift: int, like: Tensor) -> Tensor:
    """(number, size): row index plus or minus column index, shifted."""
    first, second = (torch.arange(count, device=like.device) for count in (number, size))
    return first[:, None] + sign * second + shift


def _pick(source: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return entries of (N, A, B, H, W) at indices into A and B that differ from pixel to pixel.

    Args:
        source: See above.
        rows: (A', H), indices into A; there are zeros where they are out of it.
        columns: (B', W), indices into B, in the same way.

    Returns:
        (N, A', B', H, W).
    """
    most_rows, most_columns, height, width = source.shape[1:]
    y, x = (torch.arange(size, device=source.device) for size in (height, width))
    a, b = rows[:, None, :, None], columns[:, None]
    outside = (a < 0) | (a >= most_rows) | (b < 0) | (b >= most_columns)
    gathered = source[:, a.clamp(0, most_rows - 1), b.clamp(0, most_columns - 1), y[:, None], x]
    return gathered.masked_fill(outside, 0)
