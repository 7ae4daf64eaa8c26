"""The bodies of the CUDA kernels, run on the host thread by thread, against the definition.

This needs a C++ compiler and no GPU. What it cannot show: speed, and what only a
GPU does (memory limits, launches, the conversions to and from half precision).
"""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from overlock_mm.ops.contmix import reference
from tests.ops import helpers
from tests.ops.helpers import LAYOUTS, SHAPES
from tests.tolerances import assert_close

COMPILER = shutil.which('c++') or shutil.which('g++') or shutil.which('clang++')
HEADERS = Path(reference.__file__).parents[1] / 'csrc' / 'common' / 'cuda'
SCALE = 0.3

pytestmark = pytest.mark.skipif(COMPILER is None, reason='No C++ compiler was found.')


class Map(ctypes.Structure):
    """`Map` and `TokenMap` of the kernels: a pointer and five strides."""

    _fields_ = [('data', ctypes.c_void_p), ('strides', ctypes.c_int64 * 5)]

    @classmethod
    def of(cls, tensor):
        return cls(tensor.data_ptr(), (ctypes.c_int64 * 5)(*tensor.stride()))


class Arguments(ctypes.Structure):
    _fields_ = [
        ('query', Map),
        ('value', Map),
        ('key', Map),
        ('proj_weight', ctypes.c_void_p),
        ('proj_bias', ctypes.c_void_p),
        ('rpb', ctypes.c_void_p),
        ('batches', ctypes.c_int64),
        ('groups', ctypes.c_int64),
        ('query_channels', ctypes.c_int),
        ('channels', ctypes.c_int),
        ('regions', ctypes.c_int),
        ('height', ctypes.c_int),
        ('width', ctypes.c_int),
        ('kernel_size', ctypes.c_int),
        ('scale', ctypes.c_float),
    ]


class TokenGradients(ctypes.Structure):
    _fields_ = [
        ('grad_out', Map),
        ('out', Map),
        ('logsumexp', ctypes.c_void_p),
        ('d_query', Map),
        ('d_key', ctypes.c_void_p),
        ('d_projection', ctypes.c_void_p),
        ('d_rpb', ctypes.c_void_p),
        ('chunks', ctypes.c_int64),
    ]


class AggregateSizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ('batches', 'groups', 'height', 'width', 'channels', 'kernel_size', 'dilation')
    ]


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    library = tmp_path_factory.mktemp('cuda_on_host') / 'kernels.so'
    source = Path(__file__).with_name('cuda_on_host.cpp')
    options = ['-std=c++17', '-O1', '-Wall', '-Wextra', '-Werror', '-shared', '-fPIC']
    subprocess.run([COMPILER, *options, f'-I{HEADERS}', source, '-o', library], check=True)
    return ctypes.CDLL(str(library))


def nans(*sizes):
    return torch.full(sizes, torch.nan)


def nans_like(tensor):
    return torch.empty_like(tensor).fill_(torch.nan)


def contmix(kernels, tensors, grad_out, kernel_size, reverse, chunks):
    """Output, log-sum-exp and the six gradients, as pytorch/cuda/contmix_cuda.cu makes them."""
    query, key, value, proj_weight, proj_bias, rpb = (x.detach() for x in tensors)
    batch, groups, channels, height, width = value.shape
    query_channels, regions = key.shape[2:]
    weight = torch.zeros(kernel_size**2, kernels.region_columns())
    weight[:, :regions] = proj_weight
    a = Arguments(
        Map.of(query),
        Map.of(value),
        Map.of(key[..., None]),
        weight.data_ptr(),
        proj_bias.data_ptr(),
        rpb.data_ptr(),
        batch,
        groups,
        query_channels,
        channels,
        regions,
        height,
        width,
        kernel_size,
        SCALE,
    )
    out, logsumexp = nans_like(value), nans(batch, groups, height, width)
    reverse = ctypes.c_bool(reverse)
    kernels.contmix_forward(
        ctypes.byref(a), ctypes.byref(Map.of(out)), ctypes.c_void_p(logsumexp.data_ptr()), reverse
    )
    d_query, d_value = nans_like(query), nans_like(value)
    d_key = nans(batch, groups, kernels.tiles(ctypes.byref(a)), query_channels, regions)
    d_projection = torch.zeros(chunks, groups, kernel_size**2, kernels.projection_columns())
    d_rpb = torch.zeros(chunks, *rpb.shape)
    gradients = TokenGradients(
        Map.of(grad_out),
        Map.of(out),
        logsumexp.data_ptr(),
        Map.of(d_query),
        d_key.data_ptr(),
        d_projection.data_ptr(),
        d_rpb.data_ptr(),
        chunks,
    )
    kernels.contmix_backward(
        ctypes.byref(a), ctypes.byref(gradients), ctypes.byref(Map.of(d_value)), reverse
    )
    d_projection = d_projection.sum((0, 1))
    d_weight, d_bias = d_projection[:, :regions], d_projection[:, kernels.region_columns()]
    return out, logsumexp, (d_query, d_key.sum(2), d_value, d_weight, d_bias, d_rpb.sum(0))


@cache
def expected_contmix(shape, layout):
    """Arguments, the cotangent, and what the definition makes of them in float64."""
    tensors = helpers.contmix_arguments(shape, torch.float32, layout)
    exact = helpers.float64(tensors)
    out = reference.contmix(*exact, shape.kernel_size, SCALE)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return tensors, grad_out, out, torch.autograd.grad(out, exact, grad_out.double())


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_contmix(kernels, shape, layout):
    tensors, grad_out, wanted_out, wanted = expected_contmix(shape, layout)
    out, _, gradients = contmix(kernels, tensors, grad_out, shape.kernel_size, False, chunks=2)
    assert_close(out, wanted_out, 'output')
    for name, got, expected in zip(helpers.NAMES, gradients, wanted, strict=True):
        assert_close(got, expected, f'gradient of {name}')


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_contmix_does_not_depend_on_the_order_of_threads(kernels, shape):
    tensors, grad_out, *_ = expected_contmix(shape, 'contiguous')
    first, second = (
        contmix(kernels, tensors, grad_out, shape.kernel_size, reverse, chunks=1)
        for reverse in (False, True)
    )
    for got, expected in zip((*first[:2], *first[2]), (*second[:2], *second[2]), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize('dilation', [1, 2, 3])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_neighborhood_aggregate(kernels, layout, dilation):
    shape = helpers.Shape(2, 2, 8, 10, 11, 16, 3)
    weight, value = helpers.aggregate_arguments(shape, torch.float32, layout)
    exact = helpers.float64([weight, value])
    wanted_out = reference.neighborhood_aggregate(*exact, shape.kernel_size, dilation)
    grad_out = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(wanted_out, exact, grad_out.double())

    weight, value = weight.detach(), value.detach()
    out, d_weight, d_value = nans_like(value), nans_like(weight), nans_like(value)
    sizes = AggregateSizes(*value.shape, shape.kernel_size, dilation)
    operands = (Map.of(x) for x in (weight, value, grad_out, out, d_weight, d_value))
    kernels.neighborhood_aggregate(*map(ctypes.byref, (sizes, *operands)))
    assert_close(out, wanted_out, 'output')
    assert_close(d_weight, wanted[0], 'gradient of weight')
    assert_close(d_value, wanted[1], 'gradient of value')
