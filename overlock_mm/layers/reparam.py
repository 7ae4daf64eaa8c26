"""The large depthwise convolution with dilated branches, and how it is reparameterized.

A K x K depthwise convolution is trained beside several small dilated ones, each
with its own batch norm, and their outputs are summed (paper section 3.4, after
UniRepLKNet, arXiv 2311.15599). In evaluation the sum is one K x K convolution.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.layers.basic import build_norm
from overlock_mm.layers.depthwise import DepthwiseConv2d, KeptDepthwiseConv2d, uses_kernels
from overlock_mm.ops.precision import lower_to_autocast

#: Dilated branches (kernel, dilation) beside the K x K depthwise convolution of
#: a reparameterized layer, by K (supplement of the paper; RepLKNet's successor UniRepLKNet).
DILATED_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def fuse_conv_bn(
    weight: Tensor, bias: Tensor | None, norm: nn.modules.batchnorm._BatchNorm
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution that includes the ``norm`` after it.

    Args:
        weight: [O, I, k, k].
        bias: [O] or None.
        norm: Batch norm over O channels with running statistics.

    Raises:
        ValueError: The norm keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError('A batch norm without running statistics cannot be folded.')
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * factor.view(-1, 1, 1, 1), norm.bias - shift * factor


def densify_dilated_kernel(weight: Tensor, dilation: int) -> Tensor:
    """Return the undilated kernel with the same effect.

    Args:
        weight: [O, I, k, k].
        dilation: d, at least 1.

    Returns:
        [O, I, d*(k-1)+1, d*(k-1)+1], zero between the taps.
    """
    size = dilation * (weight.shape[-1] - 1) + 1
    dense = weight.new_zeros(*weight.shape[:2], size, size)
    dense[..., ::dilation, ::dilation] = weight
    return dense


class DilatedBranch(nn.Module):
    """A small dilated depthwise convolution with its batch norm."""

    def __init__(
        self, channels: int, kernel_size: int, dilation: int, norm_cfg: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.conv = DepthwiseConv2d(channels, kernel_size, dilation)
        self.norm = build_norm(norm_cfg, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def dense_kernel(self) -> tuple[Tensor, Tensor]:
        """Return the undilated kernel and the bias that equal this branch in evaluation."""
        weight, bias = fuse_conv_bn(self.conv.weight, None, self.norm)
        return densify_dilated_kernel(weight, self.conv.dilation[0]), bias


class DilatedReparamConv(nn.Module):
    """Large depthwise convolution, trained with dilated branches.

    Args:
        channels: C of the input and output, [B, C, H, W].
        kernel_size: K, a key of :data:`DILATED_BRANCHES`.
        norm_cfg: Batch norm of every branch.
    """

    def __init__(self, channels: int, kernel_size: int, norm_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        #: One of :data:`overlock_mm.layers.forms.FORMS`: training or reparameterized.
        self.form = 'training'
        self.conv = KeptDepthwiseConv2d(channels, kernel_size)
        self.norm = build_norm(norm_cfg, channels)
        self.branches = nn.ModuleDict(
            {
                f'k{size}_d{dilation}': DilatedBranch(channels, size, dilation, norm_cfg)
                for size, dilation in DILATED_BRANCHES[kernel_size]
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        if uses_kernels(self.conv, x):  # converted once for all branches
            (x,) = lower_to_autocast(x)
            x = x.contiguous(memory_format=torch.channels_last)
        y = self.conv(x)
        if self.form != 'training':
            return y
        first, *others = (branch(x) for branch in self.branches.values())
        return sum(others, first) + self.norm(y)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold all branches into one convolution. Idempotent."""
        if self.form != 'training':
            return
        weight, bias = fuse_conv_bn(self.conv.weight, None, self.norm)
        for branch in self.branches.values():
            kernel, branch_bias = cast(DilatedBranch, branch).dense_kernel()
            margin = (self.kernel_size - kernel.shape[-1]) // 2
            weight = weight + F.pad(kernel, [margin] * 4)
            bias = bias + branch_bias
        self.conv.weight.copy_(weight)
        self.conv.bias = nn.Parameter(bias, requires_grad=self.conv.weight.requires_grad)
        del self.norm, self.branches
        self.form = 'reparameterized'
