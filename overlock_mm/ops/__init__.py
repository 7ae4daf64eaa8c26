"""Operators of OverLoCK. They need torch and nothing else."""

from overlock_mm.ops.contmix.api import contmix, neighborhood_aggregate
from overlock_mm.ops.contmix.backends import available_backends
from overlock_mm.ops.depthwise.api import (
    channels_innermost,
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)

__all__ = [
    'available_backends',
    'channels_innermost',
    'contmix',
    'depthwise_conv2d',
    'depthwise_conv2d_norm',
    'depthwise_conv2d_stats',
    'neighborhood_aggregate',
]
