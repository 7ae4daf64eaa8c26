"""CARAFE, content-aware reassembly of features (Wang et al., ICCV 2019).

Each pixel of a map that is enlarged by a whole factor is a weighted sum of the pixels around the
one below it, with weights of its own; pixels outside the map count as 0. The taps of the window are
added one by one, so that only one is held.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, widened

_CARAFE = Family(('CARAFE', 'CARAFEPack', 'carafe'), 'torch')
_NAIVE = Family(('CARAFENaive', 'carafe_naive'), 'torch')


@_CARAFE.operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Enlarge a map.

    Args:
        features: (N, C, H, W).
        masks: (N, groups * window, scale * H, scale * W), weights of the pixels of a window.
        rfeatures: Receives the features, which mmcv hands to :func:`carafe_backward`.
        routput: Not used.
        rmasks: Not used.
        output: (N, C, scale * H, scale * W), receives the result.
        kernel_size: Side of the window, odd.
        group_size: Groups of channels, each with weights of its own.
        scale_factor: Scale.
    """
    rfeatures.copy_(features)
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


@_CARAFE.operator
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Derivatives of :func:`carafe_forward`.

    Args:
        top_grad: (N, C, scale * H, scale * W).
        rfeatures: The argument of the forward operator.
        masks: The argument of the forward operator.
        rtop_grad: Not used.
        rbottom_grad_hs: Not used.
        rbottom_grad: Not used.
        rmask_grad: Not used.
        bottom_grad: Receives the derivative by the features, in their shape.
        mask_grad: Receives the one by the weights.
        kernel_size: The argument of the forward operator.
        group_size: The argument of the forward operator.
        scale_factor: The argument of the forward operator.
    """
    settings = (kernel_size, group_size, scale_factor)
    _differentiate(top_grad, rfeatures, masks, bottom_grad, mask_grad, *settings)


@_NAIVE.operator
def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """:func:`carafe_forward` under another name."""
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


@_NAIVE.operator
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """:func:`carafe_backward` under another name."""
    settings = (kernel_size, group_size, scale_factor)
    _differentiate(top_grad, features, masks, bottom_grad, mask_grad, *settings)


def _reassemble(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    features, masks = widened(features, masks)
    window = _Window(features, kernel, groups)
    output = features.new_zeros(*window.grouped, masks.size(2), masks.size(3))
    blocks = _blocks(output, scale)
    for values, weights in zip(window, _taps(masks, groups, scale), strict=True):
        blocks.addcmul_(values[..., None, :, None], weights)
    return output.flatten(1, 2)


def _differentiate(
    grad: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_features: Tensor,
    grad_masks: Tensor,
    kernel: int,
    groups: int,
    scale: int,
) -> None:
    grad, features, masks = widened(grad, features, masks)
    window = _Window(features, kernel, groups)
    by_features = _Window(torch.zeros_like(features), kernel, groups)
    by_masks = torch.zeros_like(masks)
    blocks = _blocks(grad.unflatten(1, window.grouped[1:]), scale)
    for values, sums, weights, by_weights in zip(
        window,
        by_features,
        _taps(masks, groups, scale),
        _taps(by_masks, groups, scale),
        strict=True,
    ):
        sums += (blocks * weights).sum((-3, -1))
        by_weights += (blocks * values[..., None, :, None]).sum(2, keepdim=True)
    grad_features.copy_(by_features.inner())
    grad_masks.copy_(by_masks)


class _Window:
    """Views of a map, one for each tap of a window that slides over it.

    Args:
        features: (N, C, H, W).
        kernel: Side of the window.
        groups: Groups of channels; views are (N, groups, C / groups, H, W).
    """

    def __init__(self, features: Tensor, kernel: int, groups: int) -> None:
        self.radius, self.kernel = kernel // 2, kernel
        self.size = features.shape[2:]
        padded = F.pad(features, (self.radius,) * 4)
        self.padded = padded.unflatten(1, (groups, features.size(1) // groups))
        self.grouped = self.padded.shape[:3]

    def __iter__(self) -> Iterator[Tensor]:
        height, width = self.size
        for row in range(self.kernel):
            for column in range(self.kernel):
                yield self.padded[..., row : row + height, column : column + width]

    def inner(self) -> Tensor:
        """Return the map itself, (N, C, H, W)."""
        height, width = self.size
        rows = slice(self.radius, self.radius + height)
        columns = slice(self.radius, self.radius + width)
        return self.padded[..., rows, columns].flatten(1, 2)


def _blocks(large: Tensor, scale: int) -> Tensor:
    """(..., scale * H, scale * W) as (..., H, scale, W, scale)."""
    return large.unflatten(-1, (-1, scale)).unflatten(-3, (-1, scale))


def _taps(masks: Tensor, groups: int, scale: int) -> tuple[Tensor, ...]:
    """Return views of the weights for each tap, (N, groups, 1, H, scale, W, scale)."""
    return _blocks(masks.unflatten(1, (groups, 1, -1)), scale).unbind(3)
