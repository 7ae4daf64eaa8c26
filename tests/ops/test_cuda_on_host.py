"""The bodies of the CUDA kernels, run on the host thread by thread, against the definition.

This needs a C++ compiler and no GPU. What it cannot show: speed, and what only a
GPU does (memory limits, launches, the conversions to and from half precision).
"""

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from overlock_mm.ops.contmix import reference
from tests.ops import depthwise_helpers as depthwise
from tests.ops import helpers
from tests.ops.helpers import LAYOUTS, SHAPES
from tests.tolerances import TOLERANCES, assert_close

COMPILER = shutil.which('c++') or shutil.which('g++') or shutil.which('clang++')
HEADERS = Path(reference.__file__).parents[1] / 'csrc' / 'common' / 'cuda'
SCALE = 0.3
#: And a number of regions that other backends refuse.
CONTMIX_SHAPES = (*SHAPES, helpers.Shape(1, 2, 8, 8, 9, 9, 5, 81))

pytestmark = pytest.mark.skipif(COMPILER is None, reason='No C++ compiler was found.')


class Map(ctypes.Structure):
    """`Map` and `TokenMap` of the kernels: a pointer and five strides."""

    _fields_ = [('data', ctypes.c_void_p), ('strides', ctypes.c_int64 * 5)]

    @classmethod
    def of(cls, tensor):
        return cls(tensor.data_ptr(), (ctypes.c_int64 * 5)(*tensor.stride()))


class Folding(ctypes.Structure):
    _fields_ = [
        ('key', Map),
        ('proj_weight', ctypes.c_void_p),
        ('proj_bias', ctypes.c_void_p),
        ('batches', ctypes.c_int),
        ('groups', ctypes.c_int),
        ('query_channels', ctypes.c_int),
        ('regions', ctypes.c_int),
        ('taps', ctypes.c_int),
        ('scale', ctypes.c_float),
    ]


class Arguments(ctypes.Structure):
    _fields_ = [
        ('query', Map),
        ('value', Map),
        ('folded', ctypes.c_void_p),
        ('rpb', ctypes.c_void_p),
        ('batches', ctypes.c_int),
        ('groups', ctypes.c_int),
        ('query_channels', ctypes.c_int),
        ('channels', ctypes.c_int),
        ('height', ctypes.c_int),
        ('width', ctypes.c_int),
        ('kernel_size', ctypes.c_int),
    ]


class TokenGradients(ctypes.Structure):
    _fields_ = [
        ('grad_out', Map),
        ('out', Map),
        ('logsumexp', ctypes.c_void_p),
        ('d_query', Map),
        ('d_folded', ctypes.c_void_p),
        ('d_rpb', ctypes.c_void_p),
        ('chunks', ctypes.c_int64),
    ]


class AggregateSizes(ctypes.Structure):
    _fields_ = [
        ('batches', ctypes.c_int64),
        ('groups', ctypes.c_int64),
        ('height', ctypes.c_int),
        ('width', ctypes.c_int),
        ('channels', ctypes.c_int),
        ('kernel_size', ctypes.c_int),
        ('dilation', ctypes.c_int),
    ]


class ChannelMap(ctypes.Structure):
    _fields_ = [('data', ctypes.c_void_p), ('strides', ctypes.c_int64 * 3)]

    @classmethod
    def of(cls, tensor):
        """Of a tensor, or a null pointer of None."""
        if tensor is None:
            return cls(None, (ctypes.c_int64 * 3)())
        batch, _, row, column = tensor.stride()
        return cls(tensor.data_ptr(), (ctypes.c_int64 * 3)(batch, row, column))


class DepthwiseCall(ctypes.Structure):
    _fields_ = [
        ('x', ChannelMap),
        ('addend', ChannelMap),
        ('weight', ctypes.c_void_p),
        ('bias', ctypes.c_void_p),
        ('input_bias', ctypes.c_void_p),
        ('y', ChannelMap),
        ('sums', ctypes.c_void_p),
        ('batches', ctypes.c_int64),
        ('channels', ctypes.c_int64),
        ('height', ctypes.c_int),
        ('width', ctypes.c_int),
        ('gelu_input', ctypes.c_bool),
        ('gelu_output', ctypes.c_bool),
        ('squares', ctypes.c_bool),
    ]


class DepthwiseNorm(ctypes.Structure):
    _fields_ = [
        ('y', ctypes.c_void_p),
        ('weight', ctypes.c_void_p),
        ('bias', ctypes.c_void_p),
        ('skip_weight', ctypes.c_void_p),
        ('skip_bias', ctypes.c_void_p),
        ('normed', ctypes.c_void_p),
        ('pixels', ctypes.c_int64),
        ('channels', ctypes.c_int64),
        ('eps', ctypes.c_float),
    ]


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    library = tmp_path_factory.mktemp('cuda_on_host') / 'kernels.so'
    source = Path(__file__).with_name('cuda_on_host.cpp')
    options = ['-std=c++17', '-O1', '-Wall', '-Wextra', '-Werror', '-shared', '-fPIC']
    subprocess.run([COMPILER, *options, f'-I{HEADERS}', source, '-o', library], check=True)
    return ctypes.CDLL(str(library))


def run(kernels, name, *operands):
    """Call a function of the library: structures and tensors by their addresses."""

    def passed(operand):
        if isinstance(operand, torch.Tensor):
            return ctypes.c_void_p(operand.data_ptr())
        if isinstance(operand, ctypes.Structure):
            return ctypes.byref(operand)
        return ctypes.c_bool(operand) if isinstance(operand, bool) else ctypes.c_int(operand)

    getattr(kernels, name)(*map(passed, operands))


def nans(*sizes):
    return torch.full(sizes, torch.nan)


def nans_like(tensor):
    return torch.empty_like(tensor).fill_(torch.nan)


def contmix(kernels, tensors, grad_out, kernel_size, reverse, chunks):
    """Output, log-sum-exp and the six gradients, as pytorch/cuda/contmix_cuda.cu makes them."""
    query, key, value, proj_weight, proj_bias, rpb = (x.detach() for x in tensors)
    batch, groups, channels, height, width = value.shape
    query_channels, regions = key.shape[2:]
    taps = kernel_size**2
    columns = kernels.folded_columns(channels, query_channels, kernel_size)
    folded = nans(batch, groups, taps, columns)
    folding = Folding(
        Map.of(key[..., None]),
        proj_weight.data_ptr(),
        proj_bias.data_ptr(),
        *(batch, groups, query_channels, regions, taps),
        SCALE,
    )
    a = Arguments(
        Map.of(query),
        Map.of(value),
        folded.data_ptr(),
        rpb.data_ptr(),
        *(batch, groups, query_channels, channels, height, width, kernel_size),
    )

    def call(name, *operands):
        run(kernels, f'contmix_{name}_{str(value.dtype).removeprefix("torch.")}', *operands)

    call('fold', a, folding, folded, reverse)
    out, logsumexp = nans_like(value), nans(batch, groups, height, width)
    call('forward', a, Map.of(out), logsumexp, reverse)

    chunks = min(chunks, kernels.tiles(ctypes.byref(a)))
    d_query, d_value = nans_like(query), nans_like(value)
    d_folded = nans(batch, groups, chunks, taps, columns)
    d_rpb = nans(batch, groups, chunks, *rpb.shape[1:])
    gradients = TokenGradients(
        Map.of(grad_out),
        Map.of(out),
        logsumexp.data_ptr(),
        Map.of(d_query),
        d_folded.data_ptr(),
        d_rpb.data_ptr(),
        chunks,
    )
    call('backward', a, gradients, Map.of(d_value), reverse)
    slices = min(2, batch * groups)
    d_key, d_weight = nans(*key.shape).to(key.dtype), nans(slices, taps, regions)
    d_folded = d_folded.sum(2)
    call('unfold', a, folding, d_folded, d_key, slices, d_weight, reverse)
    bias_column = kernels.bias_column(channels, query_channels, kernel_size)
    d_bias = d_folded[..., bias_column].sum((0, 1))
    return out, logsumexp, (d_query, d_key, d_value, d_weight.sum(0), d_bias, d_rpb.sum((0, 2)))


@functools.cache
def expected_contmix(shape, layout, dtype=torch.float32):
    """Arguments, the cotangent, and what the definition makes of them in float64."""
    tensors = helpers.contmix_arguments(shape, dtype, layout, parameter_dtype=torch.float32)
    exact = helpers.float64(tensors)
    out = reference.contmix(*exact, shape.kernel_size, SCALE)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return tensors, grad_out, out, torch.autograd.grad(out, exact, grad_out.double())


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', CONTMIX_SHAPES, ids=str)
def test_contmix(kernels, shape, layout):
    tensors, grad_out, wanted_out, wanted = expected_contmix(shape, layout)
    out, _, gradients = contmix(kernels, tensors, grad_out, shape.kernel_size, False, chunks=2)
    assert_close(out, wanted_out, 'output')
    for name, got, expected in zip(helpers.NAMES, gradients, wanted, strict=True):
        assert_close(got, expected, f'gradient of {name}')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', CONTMIX_SHAPES, ids=str)
def test_contmix_of_two_bytes(kernels, shape, layout):
    """Half precision has packs of its own sizes."""
    tensors, grad_out, *expected = expected_contmix(shape, layout, torch.bfloat16)
    out, _, gradients = contmix(kernels, tensors, grad_out, shape.kernel_size, False, chunks=2)
    names = ('output', *(f'gradient of {name}' for name in helpers.NAMES))
    for name, got, wanted in zip(
        names, (out, *gradients), (expected[0], *expected[1]), strict=True
    ):
        # All gradients start from an output that was rounded.
        error = (got.double() - wanted).abs().max().item()
        assert error <= 2 * TOLERANCES[torch.bfloat16] * wanted.abs().max().item(), name


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


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def run_depthwise(kernels, op, positional, options, reverse, wide):
    """Results of an operator, as pytorch/cuda/depthwise_cuda.cu makes them."""
    x, weight, bias, *norm_arguments = positional
    options = {**depthwise.DEFAULTS[op], **options}
    batch, channels, height, width = x.shape
    x, addend = adjacent_channels(x), adjacent_channels(options.get('addend'))
    taps = weight.squeeze(1).permute(1, 2, 0).contiguous()
    y = nans_like(torch.empty(x.shape, memory_format=torch.channels_last))
    call = DepthwiseCall(
        ChannelMap.of(x),
        ChannelMap.of(addend),
        taps.data_ptr(),
        pointer(bias),
        pointer(options.get('input_bias')),
        ChannelMap.of(y),
        None,
        *(batch, channels, height, width),
        options.get('gelu_input', False),
        options.get('gelu_output', False),
        options.get('stat') == 'norm',
    )
    results = [y]
    if op == 'depthwise_conv2d_stats':
        sums = nans(batch, kernels.depthwise_tiles(ctypes.byref(call)), channels)
        call.sums = sums.data_ptr()
    reverse = ctypes.c_bool(reverse)
    kernels.depthwise(ctypes.byref(call), weight.shape[-1], ctypes.c_bool(wide), reverse)
    if call.sums is not None:
        total = sums.sum(1)
        results.append(total.sqrt() if call.squares else total / (height * width))
    if op == 'depthwise_conv2d_norm':
        norm_weight, norm_bias, eps = norm_arguments
        normed = nans_like(y)
        norm = DepthwiseNorm(
            y.data_ptr(),
            pointer(norm_weight),
            pointer(norm_bias),
            pointer(options['skip_weight']),
            pointer(options['skip_bias']),
            normed.data_ptr(),
            batch * height * width,
            channels,
            eps,
        )
        kernels.depthwise_norm(ctypes.byref(norm), reverse)
        results.append(normed)
    return results


def adjacent_channels(x):
    if x is None or x.stride(1) == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('layout', depthwise.LAYOUTS)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
@pytest.mark.parametrize(
    'shape',
    [shape for shape in depthwise.SHAPES if shape.kernel_size in (3, 5, 7, 17)],
    ids=str,
)
def test_depthwise(kernels, shape, op, options, layout):
    positional, tensors = depthwise.arguments(shape, op, options, layout=layout)
    results = run_depthwise(kernels, op, positional, tensors, reverse=False, wide=False)
    wanted = depthwise.expected_of(op, positional, tensors)
    for result, expected in zip(results, wanted, strict=True):
        assert_close(result, expected)
    # The wide kernel makes the same steps.
    wide = shape.channels % 8 == 0 and not (tensors.get('gelu_input') and shape.kernel_size > 3)
    others = run_depthwise(kernels, op, positional, tensors, reverse=True, wide=wide)
    for result, other in zip(results, others, strict=True):
        assert torch.equal(result, other), 'depends on the order of threads'


def test_depthwise_norm_of_a_large_mean(kernels):
    """A variance from sums of squares would have no correct digit here."""
    op, shape = 'depthwise_conv2d_norm', depthwise.Shape(1, 48, 5, 6, 3)
    positional, options = depthwise.arguments(shape, op, {})
    positional[2] = torch.full([48], 1000.0)
    results = run_depthwise(kernels, op, positional, options, reverse=False, wide=True)
    _, wanted = depthwise.expected_of(op, positional, options)
    assert (results[1].double() - wanted).abs().max() <= 1e-3


def test_gelu_of_depthwise(kernels):
    """Off by 4e-7 |x|, for all magnitudes, and broken values stay broken."""
    x = torch.cat([torch.linspace(-14, 14, 8000), torch.logspace(-30, 38, 400)])
    x = torch.cat([x, torch.tensor([float('nan'), float('inf'), float('-inf'), 0.0])])
    identity = torch.zeros(len(x), 1, 3, 3)
    identity[..., 1, 1] = 1
    positional = [x.view(1, -1, 1, 1), identity, None]
    options = {'gelu_output': True}
    (y,) = run_depthwise(kernels, 'depthwise_conv2d', positional, options, False, wide=False)
    y = y.flatten()
    error = (y.double() - torch.nn.functional.gelu(x.double())).abs()
    assert (error[:-4] <= 4e-7 * x[:-4].double().abs()).all()
    assert y[-4].isnan()
    assert y[-3] == float('inf')
    assert y[-2:].abs().max() < 4e-7
