"""Backend 'cuda': CUDA kernels of ``overlock_mm._C`` that make one pass over the map.

Sums are float32; results are the same bits in every run on one device. The gradient of a weight is
the library's.
"""

from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
    why_not_dilated,
)
from overlock_mm.ops.depthwise.reference import depthwise_conv2d_weight_grad
from overlock_mm.ops.extension import why_not_on_cuda


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    return why_not_on_cuda(call) + why_not_dilated(call)


BACKENDS.register(
    'cuda',
    why_not,
    depthwise_conv2d,
    depthwise_conv2d_weight_grad,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
