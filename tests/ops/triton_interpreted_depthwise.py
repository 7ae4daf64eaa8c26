"""Triton kernels of the depthwise operators, run by Triton's interpreter on the CPU.

Not collected by itself: tests/ops/test_triton.py runs this file in a process of its own.
"""

import pytest
import torch
import torch.nn.functional as F

from overlock_mm import ops
from overlock_mm.ops.depthwise import triton_backend, triton_launch
from tests import triton_interpreter
from tests.ops.depthwise_helpers import (
    OPTIONS,
    Shape,
    arguments,
    as_tuple,
    assert_gradients,
    assert_right,
)

pytestmark = pytest.mark.usefixtures('nan_filled')

triton_interpreter.repair()

#: Every layout and dtype; several tiles, slices of channels and samples, and maps that fill none.
CASES = [
    (Shape(1, 1, 1, 1, 3), torch.float32, 'contiguous'),
    (Shape(2, 20, 5, 9, 3), torch.float32, 'channels_last'),
    (Shape(1, 130, 5, 4, 5), torch.float16, 'strided'),
    (Shape(2, 33, 4, 6, 7), torch.bfloat16, 'channels_last'),
]


@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
@pytest.mark.parametrize(('shape', 'dtype', 'layout'), CASES, ids=str)
def test_against_the_definition(shape, dtype, layout, op, options):
    assert_right(shape, op, options, 'triton', dtype=dtype, layout=layout)


@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_without_bias(op, options):
    assert_right(Shape(1, 20, 5, 6, 3), op, options, 'triton', bias=False)


@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_operator_and_short_way_agree(op, options):
    """The call bypasses the dispatcher where nothing intercepts it."""
    positional, options = arguments(Shape(1, 6, 5, 4, 3), op, options)
    short = as_tuple(getattr(ops, op)(*positional, **options, backend='triton'))
    positional[0].requires_grad_()
    long = as_tuple(getattr(ops, op)(*positional, **options, backend='triton'))
    assert all(y.requires_grad for y in long)
    assert all(map(torch.equal, short, (y.detach() for y in long)))


@pytest.mark.parametrize(
    ('shape', 'dilation', 'dtype', 'layout'),
    [
        (Shape(2, 16, 5, 6, 5), 1, torch.bfloat16, 'channels_last'),
        (Shape(1, 20, 4, 5, 3), 2, torch.float32, 'contiguous'),
        # Two groups of taps in a column of the kernel.
        (Shape(1, 16, 3, 4, 11), 1, torch.float32, 'channels_last'),
    ],
    ids=str,
)
def test_gradients(shape, dilation, dtype, layout):
    assert_gradients(shape, dilation, 'triton', dtype=dtype, layout=layout)


def test_parameters_are_read_as_they_are():
    """Those in float32, as under autocast, are not rounded to the dtype of the map."""
    x = torch.randn(1, 16, 4, 5).half()  # the interpreter cuts bfloat16 off
    weight = torch.zeros(16, 1, 3, 3)
    weight[..., 1, 1] = 1 / 3
    bias = torch.full([16], 1 / 7)
    wanted = (x.float() * weight[0, 0, 1, 1] + bias[0]).half()
    assert torch.equal(ops.depthwise_conv2d(x, weight, bias, backend='triton'), wanted)


def test_tensors_whose_strides_are_zero():
    """Expanded ones, as a sum hands them to its gradient, and views behind other elements."""
    x = torch.randn(1, 16, 4, 5).expand(2, -1, -1, -1)
    behind = torch.randn(16 * 9 + 1)[1:].view(16, 1, 3, 3)
    results = []
    for pair in ((x, behind), (x.contiguous(), behind.clone())):
        leaves = [tensor.requires_grad_() for tensor in pair]
        out = ops.depthwise_conv2d(*leaves, backend='triton')
        results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_the_largest_kernel():
    assert_right(Shape(1, 16, 3, 9, 17), 'depthwise_conv2d', {}, 'triton', layout='strided')


@pytest.mark.parametrize('height', [4, 5, 9])
def test_every_height_of_a_tile(height):
    """Low tiles, high ones that the map does not fill, and several."""
    assert_right(Shape(1, 16, height, 5, 3), *OPTIONS[5], 'triton')


def test_more_pixels_than_the_norm_can_count(monkeypatch):
    monkeypatch.setattr(triton_backend, 'MAX_PIXELS', 23)
    assert_right(Shape(1, 16, 1, 23, 3), *OPTIONS[3], 'triton')
    with pytest.raises(RuntimeError, match='at most 23 pixels, got 24; split the batch'):
        assert_right(Shape(2, 16, 3, 4, 3), *OPTIONS[3], 'triton')


def test_wide_offsets(monkeypatch):
    monkeypatch.setattr(triton_launch, 'NARROW', 0)
    assert_right(Shape(2, 16, 3, 4, 3), *OPTIONS[2], 'triton')
    assert_gradients(Shape(2, 16, 3, 4, 3), 2, 'triton')


def gelu(values):
    """GELU of a vector: that of a convolution with a kernel of one pixel."""
    x = torch.zeros(1, 16, 1, 2 * len(values) // 16)
    x[..., ::2] = values.view(1, 16, 1, -1)
    identity = torch.zeros(16, 1, 3, 3)
    identity[..., 1, 1] = 1
    return ops.depthwise_conv2d(x, identity, gelu_output=True, backend='triton')[..., ::2].flatten()


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_gelu_within_its_bound():
    x = torch.cat([torch.linspace(-14, 14, 1600), torch.logspace(-30, 38, 160)])
    error = (gelu(x).double() - F.gelu(x.double())).abs()
    assert (error <= 4e-7 * x.double().abs()).all()


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_gelu_of_broken_values():
    x = torch.zeros(16)
    x[:3] = torch.tensor([float('nan'), float('inf'), float('-inf')])
    got = gelu(x)
    assert got[0].isnan()
    assert got[1] == float('inf')
    assert got[2].abs() < 4e-7
    assert not got[3:].any()


def test_broken_values_stay_in_the_windows_that_hold_them():
    x = torch.randn(1, 20, 6, 9)
    x[0, 3, 0, 0] = float('nan')
    finite = ops.depthwise_conv2d(x, torch.randn(20, 1, 5, 5), backend='triton').isfinite()
    assert not finite[0, 3, :3, :3].any()
    finite[0, 3, :3, :3] = True
    assert finite.all()
