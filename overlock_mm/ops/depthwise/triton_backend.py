"""Backend 'triton': Triton kernels that make one pass over the map.

Maps are read in channels_last memory; others are converted in every call. Parameters are read in
the dtype that they have. GELU before the
convolution is computed once for each column of the kernel. Sums are float32; results are the same
bits in every run on one device.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from overlock_mm.ops.depthwise import triton_launch as launch
from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.triton_runtime import contiguous, padded, why_not_here

#: Elements of the tile of the LayerNorm, which holds all channels: 16 registers a thread.
NORM_ELEMENTS = 2048
#: Pixels that it can count in 32 bits, those of the last tile beyond the map included.
MAX_PIXELS = 2**31 - NORM_ELEMENTS


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
    dilation: int,
) -> Tensor:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    y, _ = _convolution(
        x, weight, bias, input_bias, addend, gelu_input, gelu_output, dilation=dilation
    )
    return y


def depthwise_conv2d_weight_grad(
    grad_out: Tensor, x: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    """See :mod:`overlock_mm.ops.depthwise.backends`."""
    x, grad_out = launch.channels_last(x), launch.channels_last(grad_out)
    batch, channels, height, width = x.shape
    tile = launch.weight_grad_tile(x, kernel_size, dilation)
    sums = x.new_empty(tile.chunks, kernel_size, kernel_size, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _kernels().weight_grad_kernel[(tile.programs,)](
            x,
            launch.strides(x),
            grad_out,
            launch.strides(grad_out),
            sums,
            batch,
            height,
            width,
            channels,
            dilation,
            tile.chunks,
            K=kernel_size,
            TAPS=tile.taps,
            GROUPS=tile.groups,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            SLICE=tile.slice,
            WIDE=launch.needs_wide_offsets(x, grad_out),
            num_warps=tile.warps,
        )
    return sums.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous()


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
    y, sums = _convolution(x, weight, bias, input_bias, addend, gelu_input, stat=stat)
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
    """See :mod:`overlock_mm.ops.depthwise.backends`.

    The LayerNorm is a pass of its own over the map, which is in the cache: a program that has all
    channels of a pixel would leave most of the card idle on small maps.
    """
    batch, channels, height, width = x.shape
    pixels = batch * height * width
    if pixels > MAX_PIXELS:
        raise RuntimeError(
            f'The LayerNorm takes at most {MAX_PIXELS} pixels, got {pixels}; split the batch.'
        )
    y, _ = _convolution(x, weight, bias)
    normed = torch.empty_like(y)
    channel_slice = padded(channels)
    tokens = max(1, NORM_ELEMENTS // channel_slice)
    with torch.cuda.device_of(x):
        _kernels().norm_kernel[(-(-pixels // tokens),)](
            y,
            norm_weight.contiguous(),
            norm_bias.contiguous(),
            contiguous(skip_weight),
            contiguous(skip_bias),
            normed,
            eps,
            pixels,
            channels,
            PIXELS=tokens,
            SLICE=channel_slice,
        )
    return y, normed


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None = None,
    addend: Tensor | None = None,
    gelu_input: bool = False,
    gelu_output: bool = False,
    stat: str | None = None,
    dilation: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the map, and its sums ('mean') or those of its squares ('norm') over each tile."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    x = launch.channels_last(x)
    added = x if addend is None else launch.channels_last(addend)
    batch, channels, height, width = x.shape
    tile = launch.map_tile(x, dilation)
    statistic = 0 if stat is None else ('mean', 'norm').index(stat) + 1
    sums = x.new_empty((batch, tile.per_sample, channels) if statistic else 0, dtype=torch.float32)
    # [k, k, C]; nothing is copied where the channels are innermost already.
    weight = weight.squeeze(1).permute(1, 2, 0).contiguous()
    with torch.cuda.device_of(x):
        _kernels().depthwise_kernel[(tile.programs,)](
            x,
            launch.strides(x),
            weight,
            weight if bias is None else bias.contiguous(),
            contiguous(input_bias),
            added,
            launch.strides(added),
            out,
            launch.strides(out),
            sums,
            height,
            width,
            channels,
            dilation,
            int(bias is not None),
            int(addend is not None),
            statistic,
            K=weight.shape[0],
            GELU_INPUT=gelu_input,
            GELU_OUTPUT=gelu_output,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            SLICE=tile.slice,
            WIDE=launch.needs_wide_offsets(x, out, added),
            num_warps=tile.warps,
        )
    return out, sums


def _kernels() -> ModuleType:
    # Triton is imported when a kernel first runs: importing the package stays quick.
    return importlib.import_module('overlock_mm.ops.depthwise.triton_kernels')


BACKENDS.register(
    'triton',
    why_not,
    depthwise_conv2d,
    depthwise_conv2d_weight_grad,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
)
