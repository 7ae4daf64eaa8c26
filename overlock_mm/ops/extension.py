"""The compiled extension ``overlock_mm._C``, loaded at first use.

It registers its functions with torch as ``torch.ops.overlock_mm_C``, one schema each and kernels
per device, so that the backends 'cpu' and 'cuda' of an operator share one call.
"""

import importlib
from functools import cache

import torch

from overlock_mm.ops.selection import Call

REMEDY = (
    'Remedy, with a C++ compiler installed: pip install --no-build-isolation '
    '--force-reinstall --no-deps <folder of overlock_mm>.'
)
#: Counts the changes of what the extension offers; csrc/pytorch/extension.cpp has the number of
#: the compiled one.
INTERFACE = 3
#: What the CUDA kernels compute in.
CUDA_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def why_not_loaded() -> str | None:
    """Load the extension; return the reason why that failed, or None."""
    try:
        importlib.import_module('overlock_mm._C')
    except ModuleNotFoundError:
        return f'the compiled extension overlock_mm._C is not installed. {REMEDY}'
    except ImportError as error:
        # The usual cause is a compilation for another version of torch.
        return f'the compiled extension overlock_mm._C does not load: {error}. {REMEDY}'
    compiled = getattr(torch.ops.overlock_mm_C, 'interface', lambda: 1)()
    if compiled != INTERFACE:
        return (
            'the compiled extension overlock_mm._C is of another version of overlock_mm: its '
            f'interface has number {compiled}, not {INTERFACE}. {REMEDY}'
        )
    return None


def why_not_on_cpu(call: Call) -> list[str]:
    """Return why a call cannot run on the CPU kernels, regardless of its dtype and sizes."""
    reasons = []
    if call.device.type != 'cpu':
        reasons.append(f'it needs tensors on the CPU, got {call.device}.')
    missing = why_not_loaded()
    if missing is not None:
        reasons.append(missing)
    return reasons


def why_not_on_cuda(call: Call) -> list[str]:
    """Return why a call cannot run on the CUDA kernels, regardless of its sizes."""
    reasons = []
    if call.device.type != 'cuda':
        reasons.append(f'it needs tensors on a CUDA device, got {call.device}.')
    elif not torch.cuda.is_available():
        reasons.append('torch finds no CUDA device.')
    if call.dtype not in CUDA_DTYPES:
        reasons.append(f'dtype must be float16, bfloat16 or float32, got {call.dtype}.')
    missing = why_not_loaded()
    if missing is not None:
        reasons.append(missing)
    elif not has_kernels('CUDA'):
        reasons.append(
            'overlock_mm._C was compiled without CUDA. Remedy: reinstall with FORCE_CUDA=1, '
            'a CUDA build of torch and nvcc (CUDA_HOME).'
        )
    elif not reasons and not has_cuda_code(_device_index(call.device)):
        major, minor = torch.cuda.get_device_capability(call.device)
        reasons.append(
            f'overlock_mm._C holds no code for compute capability {major}.{minor} of '
            f'{torch.cuda.get_device_name(call.device)}. Remedy: reinstall with FORCE_CUDA=1 and '
            f'TORCH_CUDA_ARCH_LIST={major}.{minor}.'
        )
    return reasons


def has_kernels(dispatch_key: str) -> bool:
    """Return whether the loaded extension has kernels for 'CPU' or 'CUDA'."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        'overlock_mm_C::contmix_forward', dispatch_key
    )


@cache
def has_cuda_code(device_index: int) -> bool:
    """Return whether the CUDA kernels were compiled for the architecture of this device."""
    return torch.ops.overlock_mm_C.has_cuda_code(device_index)


def _device_index(device: torch.device) -> int:
    # ``cuda`` without a number is the current device.
    return torch.cuda.current_device() if device.index is None else device.index
