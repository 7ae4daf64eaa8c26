"""Checks that all operators share. Each message states the rule and the offending values."""

import torch
from torch import Tensor

MIN_KERNEL_SIZE = 3
MAX_KERNEL_SIZE = 17
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(**tensors: Tensor) -> None:
    """Check that all arguments are floating point tensors."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(tensor).__name__}.')
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(f'{name} must be a floating point tensor, got {tensor.dtype}.')


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Check that both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f'All tensors must be on one device, got {name} on {tensor.device}, '
            f'{other_name} on {other.device}.'
        )


def check_same(**tensors: Tensor) -> None:
    """Check that all tensors have one dtype and are on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        devices = ', '.join(f'{name} on {tensor.device}' for name, tensor in tensors.items())
        raise ValueError(f'All tensors must be on one device, got {devices}.')
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        dtypes = ', '.join(f'{name} {tensor.dtype}' for name, tensor in tensors.items())
        raise TypeError(f'All tensors must have one dtype, got {dtypes}.')


def check_shape(name: str, tensor: Tensor, layout: str, shape: tuple[int, ...]) -> None:
    """Check that the tensor has this shape, which the message calls ``layout``."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f'{name} must be {layout} = {list(shape)}, got {list(tensor.shape)}.')


def check_not_empty(**sizes: int) -> None:
    """Check that all sizes are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f'{name} must be at least 1, got {size}.')
