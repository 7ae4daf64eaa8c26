"""The functions of ``overlock_mm._C`` that the backends 'cpu' and 'cuda' share.

They have kernels per device, chosen by that of the tensors. Arguments and results are those
of :mod:`overlock_mm.ops.depthwise.backends`.
"""

from typing import Any

import torch
from torch import Tensor


def depthwise_conv2d(*args: Any) -> Tensor:
    """The map."""
    return torch.ops.overlock_mm_C.depthwise_conv2d(*args)


def depthwise_conv2d_norm(*args: Any) -> tuple[Tensor, Tensor]:
    """The map, perhaps scaled, and its LayerNorm."""
    return torch.ops.overlock_mm_C.depthwise_conv2d_norm(*args)


def depthwise_conv2d_stats(*args: Any) -> tuple[Tensor, Tensor]:
    """The map and the statistic of its channels."""
    return torch.ops.overlock_mm_C.depthwise_conv2d_stats(*args)
