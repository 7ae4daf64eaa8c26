"""Backend 'cpu': fused C++ kernels of ``overlock_mm._C``.

float32 and float64 are computed as they are, float16 and bfloat16 in float32.
Deterministic: results do not depend on the number of threads.
"""

from overlock_mm.ops.contmix import extension
from overlock_mm.ops.contmix.backends import Call
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


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    reasons = []
    if call.device.type != 'cpu':
        reasons.append(f'it needs tensors on the CPU, got {call.device}.')
    missing = extension.why_not_loaded()
    if missing is not None:
        reasons.append(missing)
    return reasons
