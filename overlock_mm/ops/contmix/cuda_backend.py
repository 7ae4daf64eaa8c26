"""Backend 'cuda': fused CUDA kernels of ``overlock_mm._C``."""

import torch

from overlock_mm.ops.contmix import extension
from overlock_mm.ops.contmix.backends import AnyCall, Call
from overlock_mm.ops.contmix.extension import (
    contmix_backward,
    contmix_forward,
    neighborhood_aggregate_backward,
    neighborhood_aggregate_forward,
)

__all__ = [
    'contmix_backward',
    'contmix_forward',
    'neighborhood_aggregate_backward',
    'neighborhood_aggregate_forward',
    'why_not',
]


DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# What the kernels are compiled for.
MAX_CHANNELS = 32
MAX_REGIONS = 64


def why_not_here(call: AnyCall) -> list[str]:
    """The reasons that lie in the machine, the device and the dtype."""
    reasons = []
    if call.device.type != 'cuda':
        reasons.append(f'it needs tensors on a CUDA device, got {call.device}.')
    elif not torch.cuda.is_available():
        reasons.append('torch finds no CUDA device.')
    if call.dtype not in DTYPES:
        reasons.append(f'dtype must be float16, bfloat16 or float32, got {call.dtype}.')
    missing = extension.why_not_loaded()
    if missing is not None:
        reasons.append(missing)
    elif not extension.has_kernels('CUDA'):
        reasons.append(
            'overlock_mm._C was compiled without CUDA. Remedy: reinstall with FORCE_CUDA=1, '
            'a CUDA build of torch and nvcc (CUDA_HOME).'
        )
    elif not reasons and not extension.has_cuda_code(device_index(call.device)):
        major, minor = torch.cuda.get_device_capability(call.device)
        reasons.append(
            f'overlock_mm._C holds no code for compute capability {major}.{minor} of '
            f'{torch.cuda.get_device_name(call.device)}. Remedy: reinstall with FORCE_CUDA=1 and '
            f'TORCH_CUDA_ARCH_LIST={major}.{minor}.'
        )
    return reasons


def device_index(device: torch.device) -> int:
    """The number of a CUDA device; ``cuda`` without one is the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    reasons = why_not_here(call)
    if call.op == 'contmix':
        for name, size, most in (
            ('C', call.channels, MAX_CHANNELS),
            ('Cq', call.query_channels, MAX_CHANNELS),
            ('S', call.regions, MAX_REGIONS),
        ):
            if size > most:
                reasons.append(f'{name} must be at most {most}, got {size}.')
    return reasons
