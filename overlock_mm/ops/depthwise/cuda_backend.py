"""Backend 'cuda': CUDA kernels of ``overlock_mm._C`` that make one pass over the map.

Sums are float32; results are the same bits in every run on one device.
"""

from overlock_mm.ops.contmix.cuda_backend import why_not_here as why_not
from overlock_mm.ops.depthwise.extension import (
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)

__all__ = ['depthwise_conv2d', 'depthwise_conv2d_norm', 'depthwise_conv2d_stats', 'why_not']
