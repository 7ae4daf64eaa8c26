"""The two halves of a convolution at chosen pixels, as guided anchors use it in inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family

_FAMILY = Family(('MaskedConv2d',), 'torch')


@_FAMILY.operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Windows of a map at n pixels of the result.

    Args:
        im: (1, C, H, W).
        mask_h_idx: (n,), rows, int64.
        mask_w_idx: (n,), columns, int64.
        col: (C * kernel height * kernel width, n), receives the windows, with 0 outside the map.
        kernel_h: Kernel height.
        kernel_w: Kernel width.
        pad_h: Rows of padding.
        pad_w: Columns of padding.
    """
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


@_FAMILY.operator
def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put n pixels into a map.

    Args:
        col: (C', n).
        mask_h_idx: (n,), rows, int64.
        mask_w_idx: (n,), columns, int64.
        im: (1, C', H', W'), receives them and is else left as it is.
        height: H'.
        width: W'.
        channels: C'.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col
