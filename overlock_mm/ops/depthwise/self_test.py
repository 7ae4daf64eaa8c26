"""The small problem of :mod:`overlock_mm.ops.self_test` for the depthwise operators."""

from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.depthwise.call import Call
from overlock_mm.ops.self_test import Functions, random_tensors

CHANNELS = 64


def problem(
    functions: Functions, call: Call, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """The call's operator with all that it can do besides the convolution, or its gradient."""
    random = random_tensors()

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        return random(*shape).mul(scale).to(call.dtype).to(device, dtype)

    size = (2, CHANNELS, 9, 11)
    x = tensor(*size).contiguous(memory_format=torch.channels_last)
    addend = tensor(*size).contiguous(memory_format=torch.channels_last)
    k = call.kernel_size or 7
    if call.gradient:
        return [functions['depthwise_conv2d_weight_grad'](addend, x, k, call.dilation)]
    weight = tensor(CHANNELS, 1, k, k, scale=1 / k)
    bias, input_bias, norm_weight, norm_bias = (tensor(CHANNELS) for _ in range(4))
    # No network has it around large kernels, and Triton would take seconds to compile it.
    has_gelu = k < 5
    before = (input_bias, addend, True) if has_gelu else (None, addend, False)
    arguments: dict[str, tuple[Any, ...]] = {
        'depthwise_conv2d': (weight, bias, None, addend, False, has_gelu, call.dilation),
        'depthwise_conv2d_norm': (
            *(weight, bias, norm_weight, norm_bias, 1e-6),
            *(norm_weight, norm_bias),
        ),
        'depthwise_conv2d_stats': (weight, bias, *before, 'mean'),
    }
    results = functions[call.op](x, *arguments[call.op])
    return [results] if isinstance(results, Tensor) else [*results]
