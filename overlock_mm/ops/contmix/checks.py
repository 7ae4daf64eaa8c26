"""Checks of the arguments of ContMix and of the aggregation.

Every message states the rule, then the values that break it.
"""

from torch import Tensor

from overlock_mm.ops.checks import (
    MAX_KERNEL_SIZE,
    MIN_KERNEL_SIZE,
    check_not_empty,
    check_same,
    check_same_device,
    check_shape,
    check_tensors,
)
from overlock_mm.ops.contmix.arguments import ContMixArguments


def check_window(kernel_size: int, height: int, width: int, dilation: int = 1) -> None:
    """Check that the window is odd, of a supported size and not larger than the map."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise TypeError(f'kernel_size must be an int, got {kernel_size!r}.')
    if kernel_size % 2 == 0 or not MIN_KERNEL_SIZE <= kernel_size <= MAX_KERNEL_SIZE:
        raise ValueError(
            f'kernel_size must be odd and between {MIN_KERNEL_SIZE} and {MAX_KERNEL_SIZE}, '
            f'got {kernel_size}.'
        )
    if isinstance(dilation, bool) or not isinstance(dilation, int):
        raise TypeError(f'dilation must be an int, got {dilation!r}.')
    if dilation < 1:
        raise ValueError(f'dilation must be at least 1, got {dilation}.')
    if min(height, width) < kernel_size * dilation:
        raise ValueError(
            'The map must have at least kernel_size * dilation rows and columns, got '
            f'{height} x {width} for kernel_size {kernel_size} and dilation {dilation}. '
            'Resize the map first, as the ContMix module does.'
        )


def check_neighborhood_aggregate(
    weight: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> None:
    """Check the arguments of :func:`overlock_mm.ops.neighborhood_aggregate`."""
    check_same(weight=weight, value=value)
    if value.dim() != 5:
        raise ValueError(f'value must be [B, G, H, W, C], got {list(value.shape)}.')
    batch, groups, height, width, channels = value.shape
    check_window(kernel_size, height, width, dilation)
    check_not_empty(G=groups, C=channels)
    shape = (batch, groups, height, width, kernel_size * kernel_size)
    check_shape('weight', weight, '[B, G, H, W, K*K]', shape)


def check_contmix(arguments: ContMixArguments) -> None:
    """Check the arguments of :func:`overlock_mm.ops.contmix`."""
    query, key, value, proj_weight, proj_bias, rpb, kernel_size, _ = arguments
    check_same(query=query, key=key, value=value)
    check_tensors(proj_weight=proj_weight, proj_bias=proj_bias, rpb=rpb)
    # Parameters may stay in float32 while autocast has lowered the activations.
    check_same(proj_weight=proj_weight, proj_bias=proj_bias, rpb=rpb)
    check_same_device('value', value, 'proj_weight', proj_weight)
    if query.dim() != 5:
        raise ValueError(f'query must be [B, G, Cq, H, W], got {list(query.shape)}.')
    if value.dim() != 5:
        raise ValueError(f'value must be [B, G, C, H, W], got {list(value.shape)}.')
    batch, groups, query_channels, height, width = query.shape
    check_window(kernel_size, height, width)
    value_shape = (batch, groups, value.shape[2], height, width)
    check_shape('value', value, '[B, G, C, H, W] of query', value_shape)
    regions = key.shape[-1] if key.dim() else 0
    check_shape('key', key, '[B, G, Cq, S]', (batch, groups, query_channels, regions))
    check_not_empty(G=groups, Cq=query_channels, C=value.shape[2], S=regions)
    taps = kernel_size * kernel_size
    check_shape('proj_weight', proj_weight, '[K*K, S]', (taps, regions))
    check_shape('proj_bias', proj_bias, '[K*K]', (taps,))
    side = 2 * kernel_size - 1
    check_shape('rpb', rpb, '[G, 2K-1, 2K-1]', (groups, side, side))
