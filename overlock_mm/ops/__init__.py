"""Operators of OverLoCK. They need only torch."""

from overlock_mm.ops.contmix.api import contmix, neighborhood_aggregate
from overlock_mm.ops.depthwise.api import (
    channels_innermost,
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
from overlock_mm.ops.pointwise.api import pointwise_conv2d
from overlock_mm.ops.selection import available_backends, use_backend

__all__ = [
    'available_backends',
    'channels_innermost',
    'contmix',
    'depthwise_conv2d',
    'depthwise_conv2d_norm',
    'depthwise_conv2d_stats',
    'neighborhood_aggregate',
    'pointwise_conv2d',
    'use_backend',
]
