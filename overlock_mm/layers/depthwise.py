"""Depthwise convolutions that are trained by this package's kernels on a GPU."""

from functools import cache

import torch
from torch import Tensor, nn

from overlock_mm.layers.recompute import keep_results_of
from overlock_mm.ops import depthwise_conv2d
from overlock_mm.ops.checks import MAX_KERNEL_SIZE
from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.dispatch import is_exporting
from overlock_mm.ops.precision import in_autocast

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of stride 1 that keeps the size of the map.

    On a GPU, :func:`overlock_mm.ops.depthwise_conv2d` computes it and its gradients, for which
    cuDNN takes many times as long. It works in channels_last memory: maps in another layout are
    converted, and so is the result. Elsewhere and in exported programs it is the convolution of
    torch.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilation: int = 1, bias: bool = False
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=channels,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        if not uses_kernels(self, x):
            return super().forward(x)
        return depthwise_conv2d(x, self.weight, self.bias, dilation=self.dilation[0])


class KeptDepthwiseConv2d(DepthwiseConv2d):
    """One that is too costly to compute again: see :func:`keep_results_of`."""

    def forward(self, x: Tensor) -> Tensor:
        own, library = torch.ops.overlock_mm.depthwise_conv2d, torch.ops.aten.convolution
        with keep_results_of((own if uses_kernels(self, x) else library).default):
            return super().forward(x)


def uses_kernels(conv: nn.Module, x: Tensor) -> bool:
    """Return whether a convolution is a :class:`DepthwiseConv2d` that runs our kernels on a map."""
    if not isinstance(conv, DepthwiseConv2d) or not x.is_cuda or x.dim() != 4:
        return False
    return (
        conv.kernel_size[0] <= MAX_KERNEL_SIZE
        and x.dtype in _DTYPES
        # Otherwise torch's convolution raises its error.
        and (x.dtype == conv.weight.dtype or in_autocast(x.device.type))
        and _is_for_this_process(x.device)
    )


def _is_for_this_process(device: torch.device) -> bool:
    """Whether the call may be the operator of this package: it is not exported, and can run."""
    if torch.compiler.is_compiling():
        return not is_exporting()
    return not torch.jit.is_tracing() and _has_kernels(device)


@cache
def _has_kernels(device: torch.device) -> bool:
    call = Call('depthwise_conv2d', device, torch.float32, kernel_size=7)
    return any(not BACKENDS[name].why_not(call) for name in ('cuda', 'triton'))
