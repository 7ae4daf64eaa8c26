"""Checks of the arguments of the depthwise operators.

Every message states the rule, then the values that break it.
"""

import torch
from torch import Tensor

from overlock_mm.ops.checks import (
    MAX_KERNEL_SIZE,
    MIN_KERNEL_SIZE,
    check_same_device,
    check_tensors,
)
from overlock_mm.ops.depthwise.backends import BACKENDS

STATS = ('mean', 'norm')


def check_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    addend: Tensor | None,
    backend: str | None,
    dilation: int = 1,
) -> None:
    """Check the arguments that the operators share; x and addend are known to be tensors."""
    BACKENDS.check(backend)
    check_tensors(weight=weight)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            'x must be [B, C, H, W] with at least one channel, row and column, '
            f'got {list(x.shape)}.'
        )
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1):
        raise ValueError(
            f'weight must be [C, 1, k, k] with C = {channels} as in x, got {list(weight.shape)}.'
        )
    rows, columns = weight.shape[2:]
    if rows != columns or rows % 2 == 0 or not MIN_KERNEL_SIZE <= rows <= MAX_KERNEL_SIZE:
        raise ValueError(
            'weight must have as many rows as columns, an odd number between '
            f'{MIN_KERNEL_SIZE} and {MAX_KERNEL_SIZE}, got {rows} x {columns}. '
            'Use torch.nn.functional.conv2d for other kernels.'
        )
    if isinstance(dilation, bool) or not isinstance(dilation, (int, torch.SymInt)) or dilation < 1:
        raise ValueError(f'dilation must be a positive integer, got {dilation!r}.')
    check_same_device('weight', weight, 'x', x)
    if bias is not None:
        check_parameter('bias', bias, weight)
    if input_bias is not None:
        check_parameter('input_bias', input_bias, weight)
    if addend is not None:
        if addend.shape != x.shape:
            raise ValueError(
                f'addend must have the shape of x, {list(x.shape)}, got {list(addend.shape)}.'
            )
        if addend.dtype != x.dtype:
            raise TypeError(f'addend must have the dtype of x, {x.dtype}, got {addend.dtype}.')
        check_same_device('addend', addend, 'x', x)


def check_norm(
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
) -> None:
    """Check the arguments of the LayerNorm and of the path around it."""
    check_parameter('norm_weight', norm_weight, weight)
    check_parameter('norm_bias', norm_bias, weight)
    if not eps > 0:
        raise ValueError(f'eps must be positive, got {eps}.')
    if skip_weight is not None:
        check_parameter('skip_weight', skip_weight, weight)
    if skip_bias is not None:
        if skip_weight is None:
            raise ValueError('skip_bias needs skip_weight, got None. Pass ones for no scale.')
        check_parameter('skip_bias', skip_bias, weight)


def check_stat(stat: str) -> None:
    """Check that the statistic is known."""
    if stat not in STATS:
        raise ValueError(f'stat must be one of: {", ".join(STATS)}; got {stat!r}.')


def check_parameter(name: str, parameter: Tensor, weight: Tensor) -> None:
    """Check that a parameter has a value per channel, and the weight's dtype and device."""
    check_tensors(**{name: parameter})
    if parameter.shape != weight.shape[:1]:
        raise ValueError(f'{name} must be [C] = [{len(weight)}], got {list(parameter.shape)}.')
    if parameter.dtype != weight.dtype:
        raise TypeError(
            f'All parameters must have one dtype, got weight {weight.dtype}, '
            f'{name} {parameter.dtype}.'
        )
    check_same_device(name, parameter, 'weight', weight)
