"""Backend 'cpu': C++ kernels of ``overlock_mm._C`` that make one pass over the map.

Deterministic: results do not depend on the number of threads.
"""

import torch

from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
from overlock_mm.ops.extension import why_not_on_cpu

_DTYPES = (torch.float32, torch.float64)


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    reasons = why_not_on_cpu(call)
    if call.dtype not in _DTYPES:
        reasons.insert(0, f'it computes float32 and float64, got {call.dtype}.')
    return reasons


BACKENDS.register('cpu', why_not, depthwise_conv2d, depthwise_conv2d_norm, depthwise_conv2d_stats)
