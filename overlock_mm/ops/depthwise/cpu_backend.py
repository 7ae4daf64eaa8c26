"""Backend 'cpu': C++ kernels of ``overlock_mm._C`` that make one pass over the map.

float32 and float64 are computed as they are, float16 and bfloat16 in float32. Where the processor
has AVX512_BF16, numbers of bfloat16 below 2^-126 count as zero. The gradient of a weight is the
library's. Deterministic: results do not depend on the number of threads.
"""

from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
    why_not_dilated,
)
from overlock_mm.ops.depthwise.reference import depthwise_conv2d_weight_grad
from overlock_mm.ops.extension import why_not_on_cpu


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    return why_not_on_cpu(call) + why_not_dilated(call)


BACKENDS.register(
    'cpu',
    why_not,
    depthwise_conv2d,
    depthwise_conv2d_weight_grad,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
