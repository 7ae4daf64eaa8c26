"""The functions of ``overlock_mm._C`` that the backends 'cpu' and 'cuda' share.

They have kernels per device, chosen by that of the tensors. Arguments and results are those
of :mod:`overlock_mm.ops.depthwise.backends`.
"""

from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.depthwise.backends import Call, with_converted_parameters


def why_not_dilated(call: Call) -> list[str]:
    """Return the reason why a call with a dilation cannot run."""
    return [] if call.dilation == 1 else [f'its dilation must be 1, got {call.dilation}.']


@with_converted_parameters
def depthwise_conv2d(*args: Any) -> Tensor:
    """Return the map."""
    *args_of_extension, _dilation = args
    return torch.ops.overlock_mm_C.depthwise_conv2d(*args_of_extension)


@with_converted_parameters
def depthwise_conv2d_norm(*args: Any) -> tuple[Tensor, Tensor]:
    """Return the map, scaled if requested, and its LayerNorm."""
    return torch.ops.overlock_mm_C.depthwise_conv2d_norm(*args)


@with_converted_parameters
def depthwise_conv2d_stats(*args: Any) -> tuple[Tensor, Tensor]:
    """Return the map and the statistic of its channels."""
    return torch.ops.overlock_mm_C.depthwise_conv2d_stats(*args)
