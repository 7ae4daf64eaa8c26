"""Backend 'triton': fused Triton kernels.

Products run on the matrix units: in TF32 for half precision inputs, whose values it
holds exactly, and as three TF32 products, which keep nearly all bits of float32, for
float32 inputs. Plain float32 products would spill registers to memory, and would need
more shared memory than some GPUs have. Sums are float32. Results are the same bits in
every run on one device.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.triton_runtime import padded, why_not_here

MAX_REGIONS = 64
MAX_CHANNELS = 32

#: Elements of a program's [tokens, taps, channels] tile: 64 registers a thread.
TILE_ELEMENTS = 8192
#: Tokens of a map row whose value gradient one program makes.
MAX_SEGMENT = 32
#: Channels that are processed at a time if they are not needed together.
SLICE = 8
#: Programs of the kernels that leave one partial sum each. A few for each multiprocessor
#: of the largest GPUs, and few enough that their sums stay small beside the tensors.
PARTIAL_SUMS = 1024


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    reasons = why_not_here(call)
    if call.op == 'contmix' and call.channels > MAX_CHANNELS:
        reasons.append(f'C must be at most {MAX_CHANNELS}, got {call.channels}.')
    if call.op == 'contmix' and call.query_channels > MAX_CHANNELS:
        reasons.append(f'Cq must be at most {MAX_CHANNELS}, got {call.query_channels}.')
    if call.op == 'contmix' and call.regions > MAX_REGIONS:
        reasons.append(f'S must be at most {MAX_REGIONS}, got {call.regions}.')
    return reasons


def contmix_forward(arguments: ContMixArguments) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale = arguments
    batch, groups, _, height, width = value.shape
    out = torch.empty_like(value)
    logsumexp = value.new_empty(batch, groups, height, width, dtype=torch.float32)
    sizes = _contmix_sizes(query, key, value, kernel_size)
    tiles = -(-height * width // sizes['TOKENS'])
    with torch.cuda.device_of(value):
        _kernels('triton_kernels').forward_kernel[(batch * groups * tiles,)](
            query,
            query.stride(),
            key,
            key.stride(),
            value,
            value.stride(),
            *_packed(proj_weight, proj_bias, rpb),
            out,
            out.stride(),
            logsumexp,
            scale,
            groups,
            height,
            width,
            **sizes,
        )
    return out, logsumexp


def contmix_backward(
    grad_out: Tensor, arguments: ContMixArguments, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, ...]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale = arguments
    batch, groups, channels, height, width = value.shape
    query_channels, regions = key.shape[2:]
    d_query, d_value = torch.empty_like(query), torch.empty_like(value)
    kernels = _kernels('triton_grad_kernels')
    parameters = _packed(proj_weight, proj_bias, rpb)
    sizes = _contmix_sizes(query, key, value, kernel_size)
    inputs = (query, query.stride(), key, key.stride())
    side = 2 * kernel_size - 1
    logsumexp = logsumexp.contiguous()

    def sums(*shape: int) -> Tensor:
        return value.new_zeros(shape, dtype=torch.float32)

    tiles = -(-height * width // sizes['TOKENS'])
    key_chunks = max(1, min(tiles, PARTIAL_SUMS // (batch * groups)))
    chunks = max(1, min(batch * tiles, PARTIAL_SUMS // (groups * kernel_size)))
    delta = torch.empty_like(logsumexp)
    d_key = sums(batch, groups, key_chunks, query_channels, regions)
    d_proj_weight = sums(chunks, groups, kernel_size**2, regions)
    d_proj_bias = sums(chunks, groups, kernel_size**2)
    d_rpb = sums(chunks, groups, kernel_size, side, side)
    # A segment of a map row, not wider than it needs to be.
    segment = {**sizes, 'TOKENS': min(MAX_SEGMENT, padded(width))}
    with torch.cuda.device_of(value):
        kernels.query_grad_kernel[(batch * groups * key_chunks,)](
            grad_out,
            grad_out.stride(),
            *inputs,
            value,
            value.stride(),
            *parameters,
            out,
            out.stride(),
            logsumexp,
            delta,
            d_query,
            d_query.stride(),
            d_key,
            scale,
            groups,
            height,
            width,
            key_chunks,
            SLICE=SLICE,
            **sizes,
        )
        kernels.value_grad_kernel[(batch * groups * height * -(-width // segment['TOKENS']),)](
            grad_out,
            grad_out.stride(),
            *inputs,
            *parameters,
            logsumexp,
            d_value,
            d_value.stride(),
            scale,
            groups,
            height,
            width,
            **segment,
        )
        kernels.parameter_grad_kernel[(chunks * groups * kernel_size,)](
            grad_out,
            grad_out.stride(),
            *inputs,
            value,
            value.stride(),
            *parameters,
            logsumexp,
            delta,
            d_proj_weight,
            d_proj_bias,
            d_rpb,
            scale,
            batch,
            groups,
            height,
            width,
            chunks,
            RPB_ROW=padded(side),
            SLICE=SLICE,
            **{name: size for name, size in sizes.items() if name != 'CP'},
        )
    return (
        d_query,
        d_key.sum(2).to(key.dtype),
        d_value,
        d_proj_weight.sum((0, 1)).to(proj_weight.dtype),
        d_proj_bias.sum((0, 1)).to(proj_bias.dtype),
        d_rpb.sum((0, 2)).to(rpb.dtype),
    )


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
    sizes['TOKENS'] = _tokens(sizes['ROW'], SLICE)
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
        getattr(_kernels('triton_aggregate_kernels'), kernel)[(programs,)](
            *operands, groups, height, width, dilation, **sizes
        )


def _contmix_sizes(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> dict[str, Any]:
    """Return the compile-time sizes that the ContMix kernels share."""
    row, channels = padded(kernel_size), padded(value.shape[2])
    return {
        'QUERY_CHANNELS': query.shape[2],
        'CHANNELS': value.shape[2],
        'REGIONS': key.shape[3],
        'K': kernel_size,
        'ROW': row,
        'QP': padded(query.shape[2]),
        'CP': channels,
        'SP': padded(key.shape[3]),
        'TOKENS': _tokens(row, channels),
        'PRECISION': 'tf32x3' if value.dtype == torch.float32 else 'tf32',
    }


def _tokens(row: int, channels: int) -> int:
    """Return the tokens of a program, 16 to 64, as its [tokens, row, channels] tile allows."""
    return max(16, min(64, TILE_ELEMENTS // (row * channels)))


def _packed(*parameters: Tensor) -> tuple[Tensor, ...]:
    """Return the parameters as contiguous float32, without a copy if they are that already."""
    return tuple(parameter.to(torch.float32).contiguous() for parameter in parameters)


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
