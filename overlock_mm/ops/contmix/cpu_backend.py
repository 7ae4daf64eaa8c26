"""Backend 'cpu': fused C++ kernels of ``overlock_mm._C``.

float32 and float64 are computed as they are, float16 and bfloat16 in float32. Where the processor
has AVX512_BF16, the forward pass rounds the weights of a window to bfloat16, if the channels of a
group are adjacent in memory.
Deterministic: results do not depend on the number of threads.
"""

from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.contmix.extension import (
    contmix_backward,
    contmix_forward,
    neighborhood_aggregate_backward,
    neighborhood_aggregate_forward,
)
from overlock_mm.ops.extension import why_not_on_cpu


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    return why_not_on_cpu(call)


BACKENDS.register(
    'cpu',
    why_not,
    contmix_forward,
    contmix_backward,
    neighborhood_aggregate_forward,
    neighborhood_aggregate_backward,
)
