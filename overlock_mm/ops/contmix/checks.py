"""What the operators demand of their arguments, checked once, at the door.

Every message states the rule, then the values that break it.
"""

import torch
from torch import Tensor

MIN_KERNEL_SIZE = 3
MAX_KERNEL_SIZE = 17
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_kernel_size(kernel_size: int, height: int, width: int) -> None:
    """The window is odd, of a supported size and not larger than the map."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise TypeError(f'kernel_size must be an int, got {kernel_size!r}.')
    if kernel_size % 2 == 0 or not MIN_KERNEL_SIZE <= kernel_size <= MAX_KERNEL_SIZE:
        raise ValueError(
            f'kernel_size must be odd and between {MIN_KERNEL_SIZE} and {MAX_KERNEL_SIZE}, '
            f'got {kernel_size}.'
        )
    if height < kernel_size or width < kernel_size:
        raise ValueError(
            f'The map must have at least kernel_size rows and columns, got {height} x {width} '
            f'for kernel_size {kernel_size}. Resize the map first, as the ContMix module does.'
        )


def _check_same(tensors: dict[str, Tensor]) -> None:
    """All tensors are floating point, of one dtype and on one device."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(tensor).__name__}.')
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(f'{name} must be a floating point tensor, got {tensor.dtype}.')
    if len({tensor.device for tensor in tensors.values()}) > 1:
        devices = ', '.join(f'{name} on {tensor.device}' for name, tensor in tensors.items())
        raise ValueError(f'All tensors must be on one device, got {devices}.')
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        dtypes = ', '.join(f'{name} {tensor.dtype}' for name, tensor in tensors.items())
        raise TypeError(f'All tensors must have one dtype, got {dtypes}.')


def _check_shape(name: str, tensor: Tensor, layout: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f'{name} must be {layout} = {list(shape)}, got {list(tensor.shape)}.')


def check_neighborhood_aggregate(weight: Tensor, value: Tensor, kernel_size: int) -> None:
    """Arguments of :func:`overlock_mm.ops.neighborhood_aggregate`."""
    _check_same({'weight': weight, 'value': value})
    if value.dim() != 5:
        raise ValueError(f'value must be [B, G, H, W, C], got {list(value.shape)}.')
    batch, groups, height, width, _ = value.shape
    check_kernel_size(kernel_size, height, width)
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
    check_kernel_size(kernel_size, height, width)
    value_shape = (batch, groups, value.shape[2], height, width)
    _check_shape('value', value, '[B, G, C, H, W] of query', value_shape)
    regions = key.shape[-1] if key.dim() else 0
    _check_shape('key', key, '[B, G, Cq, S]', (batch, groups, query_channels, regions))
    taps = kernel_size * kernel_size
    _check_shape('proj_weight', proj_weight, '[K*K, S]', (taps, regions))
    _check_shape('proj_bias', proj_bias, '[K*K]', (taps,))
    side = 2 * kernel_size - 1
    _check_shape('rpb', rpb, '[G, 2K-1, 2K-1]', (groups, side, side))
