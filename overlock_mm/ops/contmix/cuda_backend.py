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


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    reasons = why_not_on_cuda(call)
    if call.op == 'contmix':
        for name, size in (('C', call.channels), ('Cq', call.query_channels)):
            if size > MAX_CHANNELS:
                reasons.append(f'{name} must be at most {MAX_CHANNELS}, got {size}.')
    return reasons


BACKENDS.register(
    'cuda',
    why_not,
    contmix_forward,
    contmix_backward,
    neighborhood_aggregate_forward,
    neighborhood_aggregate_backward,
)
