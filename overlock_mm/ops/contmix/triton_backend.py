"""Backend 'triton': fused Triton kernels.

Products run on the matrix units, with float32 sums. Half precision inputs enter them as they are;
the other factor is rounded to their dtype, or split in two parts where one would not do. Of
float32 inputs each product is three TF32 products, which keep nearly all bits. Results are the
same bits in every run on one device.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.triton_runtime import padded, why_not_here

MAX_CHANNELS = 32

#: Tokens of a tile: the rows of a matrix product of one warp.
TOKENS = 16
#: Programs of the kernel whose partial sums are added afterwards: some for each multiprocessor of
#: the largest GPUs, where the map is large enough.
PARTIAL_SUMS = 4096
#: Of the aggregation's kernels: elements of a program's [tokens, taps, channels] tile, and
#: channels that are processed at a time.
TILE_ELEMENTS = 8192
SLICE = 8
#: The most programs that CUDA launches at once.
MAX_PROGRAMS = 2**31 - 1


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    reasons = why_not_here(call)
    if call.op == 'contmix' and call.channels > MAX_CHANNELS:
        reasons.append(f'C must be at most {MAX_CHANNELS}, got {call.channels}.')
    if call.op == 'contmix' and call.query_channels > MAX_CHANNELS:
        reasons.append(f'Cq must be at most {MAX_CHANNELS}, got {call.query_channels}.')
    return reasons


def contmix_forward(arguments: ContMixArguments) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    query, value = arguments.query, arguments.value
    batch, groups, _, height, width = value.shape
    out = torch.empty_like(value)
    logsumexp = value.new_empty(batch, groups, height, width, dtype=torch.float32)
    sizes = _contmix_sizes(arguments)
    with torch.cuda.device_of(value):
        folded = _fold(arguments, sizes)
        _launch(
            _kernels('triton_kernels').forward_kernel,
            batch * groups * height * _tiles(width),
            *(query, query.stride()),
            *(value, value.stride()),
            *folded,
            *(out, out.stride()),
            logsumexp,
            *(batch * groups, groups, height, width),
            **sizes,
            BAND=_band(arguments.kernel_size),
        )
    return out, logsumexp


def contmix_backward(
    grad_out: Tensor, arguments: ContMixArguments, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, ...]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    query, value = arguments.query, arguments.value
    batch, groups, _, height, width = value.shape
    d_query, d_value = torch.empty_like(query), torch.empty_like(value)
    kernels = _kernels('triton_grad_kernels')
    sizes = _contmix_sizes(arguments)
    more = _gradient_sizes(arguments)
    inputs = (grad_out, grad_out.stride(), query, query.stride())
    values = (value, value.stride())
    counts = (batch * groups, groups, height, width)
    logsumexp = logsumexp.contiguous()
    delta = torch.empty_like(logsumexp)

    k, row, tiles = arguments.kernel_size, sizes['ROW'], _tiles(width)
    shares = batch * groups * tiles * k
    chunks = max(1, min((height - k + 1) // 2, PARTIAL_SUMS // shares))

    def sums(*shape: int) -> Tensor:
        return value.new_empty(batch, groups, tiles, *shape, dtype=torch.float32)

    d_folded, d_tap_bias = sums(chunks, k, sizes['QP'], row), sums(chunks, k, row)
    d_position_bias = sums(k, chunks + k - 1, 2 * row)
    with torch.cuda.device_of(value):
        folded = _fold(arguments, sizes)
        _launch(
            kernels.query_grad_kernel,
            batch * groups * height * tiles,
            *inputs,
            *values,
            *folded,
            *(out, out.stride()),
            *(logsumexp, delta),
            *(d_query, d_query.stride()),
            *counts,
            **sizes,
            **more,
        )
        _launch(
            kernels.value_grad_kernel,
            batch * groups * height * tiles,
            *inputs,
            *folded,
            logsumexp,
            *(d_value, d_value.stride()),
            *counts,
            **sizes,
        )
        _launch(
            kernels.parameter_grad_kernel,
            shares * chunks,
            *inputs,
            *values,
            *folded,
            *(logsumexp, delta),
            *(d_folded, d_tap_bias, d_position_bias),
            *counts,
            chunks,
            **sizes,
            **more,
        )
    d_key, d_proj_weight = _unfold_grad(d_folded.sum((2, 3)), arguments)
    return (
        d_query,
        d_key,
        d_value,
        d_proj_weight,
        d_tap_bias.sum((0, 1, 2, 3))[:, :k].flatten().to(arguments.proj_bias.dtype),
        _position_bias_grad(d_position_bias.sum((0, 2)), chunks, arguments),
    )


def _fold(arguments: ContMixArguments, sizes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what `fold_kernel` prepares."""
    key, value, k = arguments.key, arguments.value, arguments.kernel_size
    batch, groups, query_channels, regions = key.shape
    row, parts = sizes['ROW'], sizes['PARTS']
    folded = value.new_empty(parts, batch * groups, k, sizes['QP'], row)
    biases = value.new_empty(2, groups, k, k, row, row)
    _launch(
        _kernels('triton_kernels').fold_kernel,
        batch * groups * k + groups * k * k,
        *(key, key.stride()),
        *(x.contiguous() for x in (arguments.proj_weight, arguments.proj_bias, arguments.rpb)),
        *(folded, biases),
        *(arguments.scale, batch * groups, groups),
        QUERY_CHANNELS=query_channels,
        REGIONS=regions,
        K=k,
        ROW=row,
        QP=sizes['QP'],
        SP=min(64, padded(regions)),
        PARTS=parts,
        num_warps=1,
    )
    return folded, biases


def _unfold_grad(d_folded: Tensor, arguments: ContMixArguments) -> tuple[Tensor, Tensor]:
    """Return the gradients of key and proj_weight from that of their product.

    Args:
        d_folded: [B, G, K, QP, ROW] float32.
        arguments: Of the call.
    """
    key, weight, k = arguments.key, arguments.proj_weight, arguments.kernel_size
    query_channels = key.shape[2]
    d_folded = d_folded[:, :, :, :query_channels, :k].transpose(2, 3) * arguments.scale
    rows = d_folded.reshape(-1, k * k)  # [B G Cq, K K]
    d_key = (rows @ weight.float()).view(key.shape)
    d_weight = rows.T @ key.float().reshape(rows.shape[0], -1)
    return d_key.to(key.dtype), d_weight.to(weight.dtype)


def _position_bias_grad(
    d_position_bias: Tensor, chunks: int, arguments: ContMixArguments
) -> Tensor:
    """Sum, for each row of the bias, what window rows and classes of map rows meet it.

    Args:
        d_position_bias: [G, K, chunks + K - 1, columns]: of the class away from the borders the
            sums of each chunk, and then the other classes.
        chunks: Programs that share the map rows away from the borders.
        arguments: Of the call.
    """
    k, side = arguments.kernel_size, 2 * arguments.kernel_size - 1
    inner, border = d_position_bias[..., :side].split((chunks, k - 1), 2)
    above, below = border.split(k // 2, 2)
    classes = torch.cat([above, inner.sum(2, keepdim=True), below], 2)
    # Window row r and class s meet row r + s. Lines of K, of which each is to move by one more than
    # the last, do so as lines of 2K that are cut into lines of 2K - 1.
    classes = torch.nn.functional.pad(classes, (0, 0, 0, k)).flatten(1, 2)[:, : k * side]
    return classes.view(-1, k, side, side).sum(1).to(arguments.rpb.dtype)


def neighborhood_aggregate_forward(
    weight: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    out = torch.empty_like(value)
    _launch_aggregate('forward_kernel', (weight, value, out), value, kernel_size, dilation)
    return out


def neighborhood_aggregate_backward(
    grad_out: Tensor, weight: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    d_weight, d_value = torch.empty_like(weight), torch.empty_like(value)
    for kernel, tensors in (
        ('weight_grad_kernel', (grad_out, value, d_weight)),
        ('value_grad_kernel', (grad_out, weight, d_value)),
    ):
        _launch_aggregate(kernel, tensors, value, kernel_size, dilation)
    return d_weight, d_value


def _launch_aggregate(
    kernel: str, tensors: tuple[Tensor, ...], value: Tensor, kernel_size: int, dilation: int
) -> None:
    """Launch a kernel of triton_aggregate_kernels over all tokens."""
    batch, groups, height, width, channels = value.shape
    sizes = {
        'CHANNELS': channels,
        'K': kernel_size,
        'ROW': padded(kernel_size),
        'SLICE': SLICE,
    }
    sizes['TOKENS'] = max(16, min(64, TILE_ELEMENTS // (sizes['ROW'] * SLICE)))
    # The kernels' order of strides: batch, group, channel (or tap), row, column.
    operands = [
        operand
        for tensor in tensors
        for operand in (tensor, tensor.permute(0, 1, 4, 2, 3).stride())
    ]
    programs = batch * groups * -(-height * width // sizes['TOKENS'])
    if kernel != 'weight_grad_kernel':  # the others write channels, a slice a program
        programs *= -(-channels // SLICE)
    with torch.cuda.device_of(value):
        _launch(
            getattr(_kernels('triton_aggregate_kernels'), kernel),
            programs,
            *operands,
            *(groups, height, width, dilation),
            **sizes,
        )


def _contmix_sizes(arguments: ContMixArguments) -> dict[str, Any]:
    """Return the compile-time sizes that the ContMix kernels share."""
    query, value = arguments.query, arguments.value
    single = value.dtype == torch.float32
    return {
        'QUERY_CHANNELS': query.shape[2],
        'CHANNELS': value.shape[2],
        'K': arguments.kernel_size,
        'ROW': padded(arguments.kernel_size),
        'QP': padded(query.shape[2]),
        'CP': padded(value.shape[2]),
        'TOKENS': TOKENS,
        'PARTS': 1 if single else 2,
        'PRECISION': 'tf32x3' if single else 'tf32',
        'num_warps': 1,
        'num_stages': 2,
    }


def _gradient_sizes(arguments: ContMixArguments) -> dict[str, Any]:
    """Return those that kernels with gradients of logits need too."""
    from triton import language

    half = arguments.value.dtype == torch.bfloat16
    return {
        'BAND': _band(arguments.kernel_size),
        'GRAD_DTYPE': language.bfloat16 if half else language.float32,
    }


def _band(kernel_size: int) -> int:
    """Return the padded columns of a tile's band, whose start is rounded down to eight columns.

    Away from the borders windows start kernel_size // 2 columns before their tokens, and tiles
    at multiples of TOKENS. Windows at the right border start together, anywhere.
    """
    before = -(kernel_size // 2) % 8
    return padded(max(before + TOKENS - 1, 7) + kernel_size)


def _tiles(width: int) -> int:
    return -(-width // TOKENS)


def _launch(kernel: Any, programs: int, *operands: Any, **sizes: Any) -> None:
    if programs > MAX_PROGRAMS:
        raise RuntimeError(
            f'A launch takes at most {MAX_PROGRAMS} programs, and this map needs {programs}; '
            'split the batch.'
        )
    kernel[(programs,)](*operands, **sizes)


def _kernels(name: str) -> ModuleType:
    # Triton is imported when a kernel first runs: importing the package stays quick.
    return importlib.import_module(f'overlock_mm.ops.contmix.{name}')


BACKENDS.register(
    'triton',
    why_not,
    contmix_forward,
    contmix_backward,
    neighborhood_aggregate_forward,
    neighborhood_aggregate_backward,
)
