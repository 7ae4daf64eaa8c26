"""Backend 'cuda': fused CUDA kernels of ``overlock_mm._C``."""

from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.contmix.extension import (
    contmix_backward,
    contmix_forward,
    neighborhood_aggregate_backward,
    neighborhood_aggregate_forward,
)
from overlock_mm.ops.extension import why_not_on_cuda

# What the kernels are compiled for.
MAX_CHANNELS = 32
MAX_REGIONS = 64


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    reasons = why_not_on_cuda(call)
    if call.op == 'contmix':
        for name, size, most in (
            ('C', call.channels, MAX_CHANNELS),
            ('Cq', call.query_channels, MAX_CHANNELS),
            ('S', call.regions, MAX_REGIONS),
        ):
            if size > most:
                reasons.append(f'{name} must be at most {most}, got {size}.')
    return reasons


BACKENDS.register(
    'cuda',
    why_not,
    contmix_forward,
    contmix_backward,
    neighborhood_aggregate_forward,
    neighborhood_aggregate_backward,
)
