"""Backend 'cuda': CUDA kernels of ``overlock_mm._C`` that make one pass over the map.

Sums are float32; results are the same bits in every run on one device.
"""

from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
from overlock_mm.ops.extension import why_not_on_cuda


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    return why_not_on_cuda(call)


BACKENDS.register('cuda', why_not, depthwise_conv2d, depthwise_conv2d_norm, depthwise_conv2d_stats)
