"""Backend 'cpu': C++ kernels of ``overlock_mm._C`` that make one pass over the map.

Deterministic: results do not depend on the number of threads.
"""

import torch

from overlock_mm.ops.contmix import extension
from overlock_mm.ops.depthwise.backends import Call
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)

__all__ = ['depthwise_conv2d', 'depthwise_conv2d_norm', 'depthwise_conv2d_stats', 'why_not']

_DTYPES = (torch.float32, torch.float64)


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    reasons = []
    if call.device.type != 'cpu':
        reasons.append(f'it needs tensors on the CPU, got {call.device}.')
    if call.dtype not in _DTYPES:
        reasons.append(f'it computes float32 and float64, got {call.dtype}.')
    missing = extension.why_not_loaded()
    if missing is not None:
        reasons.append(missing)
    return reasons
