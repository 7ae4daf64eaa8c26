"""Dtypes of the operators, for accumulation and under autocast."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of accumulation: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_autocast(device_type: str) -> bool:
    """Return whether autocast is on. Some devices, such as meta, have none."""
    # torch.compile cannot trace the second question, so it is skipped for the usual devices.
    available = device_type in ('cpu', 'cuda') or torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)


def lower_to_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return activations in the dtype of autocast, if it is on for their device.

    Under autocast a network passes a mixture: convolutions have lowered their outputs, norms have
    not. Backends accumulate in float32 in any case, so the lower dtype halves the memory traffic
    and does not harm the softmax. As everywhere in autocast, float64 stays.
    """
    device = tensors[0].device.type
    if not in_autocast(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def without_autocast(function: Callable) -> Callable:
    """Run a function of tensors, the first of them positional, with autocast switched off."""

    @functools.wraps(function)
    def wrapper(first: Tensor, *args: Any) -> Any:
        device = first.device.type
        if not in_autocast(device):
            return function(first, *args)
        with torch.autocast(device, enabled=False):
            return function(first, *args)

    return wrapper
