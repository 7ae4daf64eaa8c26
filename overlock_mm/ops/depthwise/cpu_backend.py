"""Backend 'cpu': C++ kernels of ``overlock_mm._C`` that make one pass over the map.

Deterministic: results do not depend on the number of threads.
"""

import torch
from torch import Tensor

from overlock_mm.ops.contmix import extension
from overlock_mm.ops.depthwise.backends import Call

_DTYPES = (torch.float32, torch.float64)


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    reasons = []
    if call.device.type != 'cpu':
        reasons.append(f'it needs tensors on the CPU, got {call.device}.')
    if call.dtype not in _DTYPES:
        reasons.append(f'it computes float32 and float64, got {call.dtype}.')
    missing = extension.why_not_loaded()
    if missing is not None:
        reasons.append(missing)
    return reasons


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    addend: Tensor | None,
    gelu_input: bool,
    gelu_output: bool,
) -> Tensor:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    return torch.ops.overlock_mm_C.depthwise_conv2d(
        x, weight, bias, input_bias, addend, gelu_input, gelu_output
    )


def depthwise_conv2d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    return torch.ops.overlock_mm_C.depthwise_conv2d_norm(
        x, weight, bias, norm_weight, norm_bias, eps, skip_weight, skip_bias
    )


def depthwise_conv2d_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    addend: Tensor | None,
    gelu_input: bool,
    stat: str,
) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    return torch.ops.overlock_mm_C.depthwise_conv2d_stats(
        x, weight, bias, input_bias, addend, gelu_input, stat
    )
