"""The compiled extension ``overlock_mm._C``, loaded when first asked for.

It registers its functions with torch, one schema each and kernels per device, so
that the backends 'cpu' and 'cuda' share the calls below. Arguments and results are
those of :mod:`overlock_mm.ops.contmix.backends`.
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

REMEDY = (
    'Remedy, with a C++ compiler at hand: pip install --no-build-isolation '
    '--force-reinstall --no-deps <folder of overlock_mm>.'
)


@cache
def why_not_loaded() -> str | None:
    """Load the extension; the reason why that failed, or None."""
    try:
        importlib.import_module('overlock_mm._C')
    except ModuleNotFoundError:
        return f'the compiled extension overlock_mm._C is not installed. {REMEDY}'
    except ImportError as error:
        # Most often it was compiled for another version of torch.
        return f'the compiled extension overlock_mm._C does not load: {error}. {REMEDY}'
    return None


def has_kernels(dispatch_key: str) -> bool:
    """Whether the loaded extension has kernels for 'CPU' or 'CUDA'."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        'overlock_mm_C::contmix_forward', dispatch_key
    )


@cache
def has_cuda_code(device_index: int) -> bool:
    """Whether the CUDA kernels were compiled for the architecture of this device."""
    return torch.ops.overlock_mm_C.has_cuda_code(device_index)


def contmix_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    return torch.ops.overlock_mm_C.contmix_forward(*args)


def contmix_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of the six tensors."""
    return torch.ops.overlock_mm_C.contmix_backward(*args)


def neighborhood_aggregate_forward(*args: Any) -> Tensor:
    """Output."""
    return torch.ops.overlock_mm_C.neighborhood_aggregate_forward(*args)


def neighborhood_aggregate_backward(*args: Any) -> tuple[Tensor, Tensor]:
    """Gradients of weight and value."""
    return torch.ops.overlock_mm_C.neighborhood_aggregate_backward(*args)
