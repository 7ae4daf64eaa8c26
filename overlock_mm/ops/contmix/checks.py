"""What the operators demand of their arguments, checked once, at the door.

Every message states the rule, then the values that break it.
"""

import torch
from torch import Tensor

MIN_KERNEL_SIZE = 3
MAX_KERNEL_SIZE = 17
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_window(kernel_size: int, height: int, width: int, dilation: int = 1) -> None:
    """The window is odd, of a supported size and not larger than the map."""
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


def check_tensors(**tensors: Tensor) -> None:
    """All arguments are floating point tensors."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(tensor).__name__}.')
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(f'{name} must be a floating point tensor, got {tensor.dtype}.')


def _check_same(tensors: dict[str, Tensor]) -> None:
    """All tensors are of one dtype and on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        devices = ', '.join(f'{name} on {tensor.device}' for name, tensor in tensors.items())
        raise ValueError(f'All tensors must be on one device, got {devices}.')
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        dtypes = ', '.join(f'{name} {tensor.dtype}' for name, tensor in tensors.items())
        raise TypeError(f'All tensors must have one dtype, got {dtypes}.')


def _check_shape(name: str, tensor: Tensor, layout: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f'{name} must be {layout} = {list(shape)}, got {list(tensor.shape)}.')


def _check_not_empty(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f'{name} must be at least 1, got {size}.')


def check_neighborhood_aggregate(
    weight: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> None:
    """Arguments of :func:`overlock_mm.ops.neighborhood_aggregate`."""
    _check_same({'weight': weight, 'value': value})
    if value.dim() != 5:
        raise ValueError(f'value must be [B, G, H, W, C], got {list(value.shape)}.')
    batch, groups, height, width, channels = value.shape
    check_window(kernel_size, height, width, dilation)
    _check_not_empty(G=groups, C=channels)
    shape = (batch, groups, height, width, kernel_size * kernel_size)
    _check_shape('weight', weight, '[B, G, H, W, K*K]', shape)


def check_contmix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    rpb: Tensor,
    kernel_size: int,
) -> None:
    """Arguments of :func:`overlock_mm.ops.contmix`."""
    _check_same({'query': query, 'key': key, 'value': value})
    check_tensors(proj_weight=proj_weight, proj_bias=proj_bias, rpb=rpb)
    # Parameters may stay in float32 while autocast has lowered the activations.
    _check_same({'proj_weight': proj_weight, 'proj_bias': proj_bias, 'rpb': rpb})
    if proj_weight.device != value.device:
        raise ValueError(
            f'All tensors must be on one device, got value on {value.device}, '
            f'proj_weight on {proj_weight.device}.'
        )
    if query.dim() != 5:
        raise ValueError(f'query must be [B, G, Cq, H, W], got {list(query.shape)}.')
    if value.dim() != 5:
        raise ValueError(f'value must be [B, G, C, H, W], got {list(value.shape)}.')
    batch, groups, query_channels, height, width = query.shape
    check_window(kernel_size, height, width)
    value_shape = (batch, groups, value.shape[2], height, width)
    _check_shape('value', value, '[B, G, C, H, W] of query', value_shape)
    regions = key.shape[-1] if key.dim() else 0
    _check_shape('key', key, '[B, G, Cq, S]', (batch, groups, query_channels, regions))
    _check_not_empty(G=groups, Cq=query_channels, C=value.shape[2], S=regions)
    taps = kernel_size * kernel_size
    _check_shape('proj_weight', proj_weight, '[K*K, S]', (taps, regions))
    _check_shape('proj_bias', proj_bias, '[K*K]', (taps,))
    side = 2 * kernel_size - 1
    _check_shape('rpb', rpb, '[G, 2K-1, 2K-1]', (groups, side, side))
