"""Arguments of the operators in the shapes and layouts that the tests walk."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

NAMES = ('query', 'key', 'value', 'proj_weight', 'proj_bias', 'rpb')


class Shape(NamedTuple):
    """Sizes of a ContMix call."""

    batch: int
    groups: int
    query_channels: int
    channels: int
    height: int
    width: int
    kernel_size: int
    regions: int = 49

    def __str__(self):
        return (
            f'b{self.batch}g{self.groups}c{self.query_channels}-{self.channels}'
            f'-{self.height}x{self.width}-k{self.kernel_size}s{self.regions}'
        )


#: All window sizes, all of the network's group widths, maps as small as the window, and maps
#: of several row tiles.
SHAPES = (
    Shape(2, 2, 8, 8, 14, 14, 3),
    Shape(2, 2, 10, 10, 9, 12, 5),
    Shape(1, 3, 16, 16, 50, 8, 5),
    Shape(1, 2, 16, 16, 7, 7, 7),
    Shape(1, 1, 8, 16, 10, 9, 9, 1),
    Shape(1, 1, 32, 32, 20, 11, 11, 64),
    Shape(1, 2, 14, 14, 13, 16, 13),
    Shape(1, 2, 16, 8, 15, 15, 15, 9),
    Shape(1, 2, 5, 7, 33, 17, 17),
)
LAYOUTS = ('contiguous', 'channels_last', 'strided')


def as_layout(tensor, layout):
    """The same [B, G, C, H, W] values with other strides."""
    if layout == 'contiguous':
        return tensor
    if layout == 'channels_last':
        # A half of the channels of a map twice as wide, as the network takes it.
        batch, groups, channels, height, width = tensor.shape
        storage = tensor.new_zeros(batch, height, width, 2, groups, channels)
        view = storage.permute(3, 0, 4, 5, 1, 2)[1]
    else:
        view = tensor.new_zeros([2 * n for n in reversed(tensor.shape)])[(slice(0, None, 2),) * 5]
        view = view.permute(4, 3, 2, 1, 0)
    return view.copy_(tensor)


def contmix_arguments(shape, dtype, layout='contiguous', device='cpu', parameter_dtype=None):
    """The six tensors, leaves that ask for gradients; logits vary by some units."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes, scale=1.0):
        return (torch.randn(sizes, generator=generator, dtype=torch.float64) * scale).to(device)

    b, g, cq, c, h, w, k, s = shape
    activations = (normal(b, g, cq, h, w), normal(b, g, cq, s), normal(b, g, c, h, w))
    query, key, value = (x.to(dtype) for x in activations)
    parameters = (
        normal(k * k, s, scale=s**-0.5),
        normal(k * k),
        normal(g, 2 * k - 1, 2 * k - 1),
    )
    tensors = [
        as_layout(query, layout),
        key if layout == 'contiguous' else key.mT.contiguous().mT,
        as_layout(value, layout),
        *(x.to(parameter_dtype or dtype) for x in parameters),
    ]
    return [x.requires_grad_() for x in tensors]


def aggregate_arguments(shape, dtype, layout='contiguous', device='cpu'):
    """Weight and value, leaves that ask for gradients."""
    generator = torch.Generator().manual_seed(0)
    b, g, _, c, h, w, k, _ = shape
    tensors = (
        torch.randn(b, g, h, w, channels, generator=generator, dtype=torch.float64)
        for channels in (k * k, c)
    )
    return [as_layout(x.to(device, dtype), layout).requires_grad_() for x in tensors]


def float64(tensors):
    """Copies for the reference."""
    return [x.detach().double().requires_grad_() for x in tensors]


def with_gradients(function, tensors):
    """Result of a function and the gradients of its tensors for a fixed cotangent.

    The cotangent is a number of bfloat16, so that it is the same in every dtype.
    """
    out = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator).bfloat16().to(out.device, out.dtype)
    return out, torch.autograd.grad(out, tensors, cotangent)


def run_with_kernels(code, capability):
    """Run code that prints torch's capability with the kernels of an instruction set."""
    run = subprocess.run(
        [sys.executable, '-c', code],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, 'ATEN_CPU_CAPABILITY': capability},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    # Before torch 2.7 the baseline was called NO AVX.
    assert capability.upper() in run.stdout.replace('NO AVX', 'DEFAULT')


def multiplies_pairs():
    """Whether the CPU's kernels run products of bfloat16 pairs."""
    processor = Path('/proc/cpuinfo')
    return (
        'ATEN_CPU_CAPABILITY' not in os.environ
        and processor.is_file()
        and 'avx512_bf16' in processor.read_text()
    )


needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != 'AVX512', reason='The processor has no AVX-512.'
)
