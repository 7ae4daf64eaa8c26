"""Shared parts of the Triton backends: whether Triton can run, and padded sizes.

Under ``TRITON_INTERPRET=1``, set before Triton is first imported, Triton kernels run on the CPU,
slowly: that is how machines without a GPU test them.
"""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from overlock_mm.ops.selection import Call

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_CAPABILITY = (8, 0)
# The oldest version that the kernels have been compiled with.
MIN_TRITON = (3, 6)


@cache
def why_not_installed() -> str | None:
    """Return the reason why there is no usable Triton, or None."""
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed; remedy: pip install triton.'
    version = _triton_version()
    if version < MIN_TRITON:
        return (
            f'Triton must be {_dotted(MIN_TRITON)} or newer, got {_dotted(version)}; '
            'remedy: install a newer PyTorch, which brings its Triton along.'
        )
    return None


def why_not_here(call: Call) -> list[str]:
    """Return why a call cannot run on Triton kernels, regardless of its sizes."""
    missing = why_not_installed()
    reasons = [] if missing is None else [missing]
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    if call.device.type != 'cuda' and not interpreted:
        reasons.append(
            f'Tensors must be on a CUDA device, got {call.device}; TRITON_INTERPRET=1, set '
            'before the start, runs the kernels on the CPU for tests.'
        )
    elif call.device.type == 'cuda' and not torch.cuda.is_available():
        reasons.append('torch finds no CUDA device.')
    elif not interpreted:
        capability = torch.cuda.get_device_capability(call.device)
        if capability < MIN_CAPABILITY:
            reasons.append(
                f'The GPU must have compute capability {_dotted(MIN_CAPABILITY)} or higher, '
                f'got {_dotted(capability)}.'
            )
    if call.dtype not in DTYPES:
        reasons.append(f'dtype must be float16, bfloat16 or float32, got {call.dtype}.')
    return reasons


def padded(size: int) -> int:
    """Return the smallest power of two, at least 16, that a matrix product needs for ``size``."""
    return max(16, 1 << (size - 1).bit_length())


def contiguous(parameter: Tensor | None) -> Tensor | None:
    """Return an optional parameter as contiguous memory, which the kernels read."""
    return None if parameter is None else parameter.contiguous()


def _triton_version() -> tuple[int, int]:
    import triton

    major, minor = triton.__version__.split('.')[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f'{version[0]}.{version[1]}'
