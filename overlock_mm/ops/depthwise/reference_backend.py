"""Backend 'reference': the plain PyTorch of ``reference.py`` behind the operators.

Runs every call on every device.
"""

from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.depthwise import reference
from overlock_mm.ops.depthwise.backends import BACKENDS, Call, with_converted_parameters


def why_not(call: Call) -> list[str]:
    """Return no reasons: this backend can run every call."""
    return []


@with_converted_parameters
def depthwise_conv2d(*args: Any) -> Tensor:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    return _channels_last(reference.depthwise_conv2d(*args))


@with_converted_parameters
def depthwise_conv2d_norm(*args: Any) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    y, normed = reference.depthwise_conv2d_norm(*args)
    return _channels_last(y), _channels_last(normed)


@with_converted_parameters
def depthwise_conv2d_stats(*args: Any) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    y, stat = reference.depthwise_conv2d_stats(*args)
    return _channels_last(y), stat


def _channels_last(y: Tensor) -> Tensor:
    """Return the map in channels_last memory, with its strides also where an axis has one entry."""
    wanted = torch.empty_like(y, device='meta', memory_format=torch.channels_last)
    if y.stride() == wanted.stride():
        return y
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)


BACKENDS.register(
    'reference',
    why_not,
    depthwise_conv2d,
    reference.depthwise_conv2d_weight_grad,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
