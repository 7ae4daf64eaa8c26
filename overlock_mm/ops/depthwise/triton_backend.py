"""Backend 'triton': Triton kernels that make one pass over the map.

GELU before the convolution is computed once per tap. Sums are float32; results are the same
bits in every run on one device.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.triton_runtime import contiguous, padded, why_not_here

#: Elements of a program's [pixels, channels] tile: 16 registers a thread.
TILE_ELEMENTS = 2048
#: Channels of a tile that does not have to hold all of them.
SLICE = 64


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    return why_not_here(call)


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
    y, _ = _convolution(x, weight, bias, input_bias, addend, gelu_input, gelu_output, None)
    return y


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
    y, sums = _convolution(x, weight, bias, input_bias, addend, gelu_input, False, stat)
    assert sums is not None
    if stat == 'norm':
        return y, sums.sum(1).sqrt()
    return y, sums.sum(1) / (x.shape[2] * x.shape[3])


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
    batch, channels, height, width = x.shape
    out, normed = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    channel_slice = padded(channels)  # all: the norm is over them
    tokens = max(1, TILE_ELEMENTS // channel_slice)
    with torch.cuda.device_of(x):
        _kernels().norm_kernel[(batch * -(-height * width // tokens),)](
            x,
            x.stride(),
            weight,
            _weight_strides(weight),
            contiguous(bias),
            norm_weight.contiguous(),
            norm_bias.contiguous(),
            contiguous(skip_weight),
            contiguous(skip_bias),
            out,
            normed,
            out.stride(),
            eps,
            height,
            width,
            CHANNELS=channels,
            K=weight.shape[-1],
            TOKENS=tokens,
            SLICE=channel_slice,
        )
    return out, normed


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    addend: Tensor | None,
    gelu_input: bool,
    gelu_output: bool,
    stat: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the map, and its sums ('mean') or those of its squares ('norm') over each tile."""
    batch, channels, height, width = x.shape
    out = torch.empty_like(x, memory_format=torch.channels_last)
    channel_slice = min(SLICE, padded(channels))
    tokens = TILE_ELEMENTS // channel_slice
    tiles = -(-height * width // tokens)
    sums = None if stat is None else x.new_empty(batch, tiles, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _kernels().depthwise_kernel[(batch * tiles * -(-channels // channel_slice),)](
            x,
            x.stride(),
            weight,
            _weight_strides(weight),
            contiguous(bias),
            contiguous(input_bias),
            addend,
            None if addend is None else addend.stride(),
            out,
            out.stride(),
            sums,
            height,
            width,
            CHANNELS=channels,
            K=weight.shape[-1],
            GELU_INPUT=gelu_input,
            GELU_OUTPUT=gelu_output,
            SQUARES=stat == 'norm',
            TOKENS=tokens,
            SLICE=channel_slice,
        )
    return out, sums


def _weight_strides(weight: Tensor) -> tuple[int, ...]:
    channel, _, row, column = weight.stride()
    return channel, row, column


def _kernels() -> ModuleType:
    # Triton is imported when a kernel first runs: importing the package stays quick.
    return importlib.import_module('overlock_mm.ops.depthwise.triton_kernels')


BACKENDS.register(
    'triton', why_not, depthwise_conv2d, depthwise_conv2d_norm, depthwise_conv2d_stats
)
