"""Backend 'cuda': CUDA kernels of ``overlock_mm._C`` that make one pass over the map.

Sums are float32; results are the same bits in every run on one device.
"""

from overlock_mm.ops.contmix.cuda_backend import why_not_here
from overlock_mm.ops.depthwise.backends import Call
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)

__all__ = ['depthwise_conv2d', 'depthwise_conv2d_norm', 'depthwise_conv2d_stats', 'why_not']


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    return why_not_here(call)
