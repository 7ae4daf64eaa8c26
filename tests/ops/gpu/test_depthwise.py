"""The depthwise operators on a GPU: results, gradients, layouts, sizes, determinism."""

import pytest
import torch

from overlock_mm import ops
from tests.ops import depthwise_helpers as depthwise
from tests.ops.gpu.helpers import DTYPES, ON_GPU

pytestmark = ON_GPU


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_depthwise_of_one_size(op, options, dtype, fused):
    shape = depthwise.Shape(2, 48, 7, 7, 7)
    depthwise.assert_right(shape, op, options, fused, device='cuda', dtype=dtype)


@pytest.mark.smoke
def test_opcheck(fused):
    positional, options = depthwise.arguments(
        depthwise.Shape(2, 48, 7, 7, 7), 'depthwise_conv2d', {}
    )
    x, weight, *_ = (depthwise.to_device(value, 'cuda') for value in positional)
    torch.library.opcheck(
        torch.ops.overlock_mm.depthwise_conv2d.default,
        (x, weight, None, None, None, False, False, 1, fused),
    )


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
@pytest.mark.parametrize('shape', depthwise.SHAPES, ids=str)
def test_depthwise(shape, op, options, dtype, fused):
    depthwise.assert_right(shape, op, options, fused, device='cuda', dtype=dtype)


@pytest.mark.parametrize('kernel_size', [3, 7, 13])
@pytest.mark.parametrize('layout', depthwise.LAYOUTS[1:])
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_depthwise_with_any_strides(op, options, layout, kernel_size, fused):
    shape = depthwise.Shape(2, 75, 9, 14, kernel_size)
    depthwise.assert_right(shape, op, options, fused, device='cuda', layout=layout, bias=False)


@pytest.mark.parametrize('shape', [(2, 256, 56, 56, 17), (1, 64, 200, 320, 3)], ids=str)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_depthwise_at_full_size(shape, op, options, fused):
    shape = depthwise.Shape(*shape)
    depthwise.assert_right(shape, op, options, fused, device='cuda', dtype=torch.bfloat16)


@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_every_run_of_a_depthwise_operator_gives_the_same_bits(op, options, fused):
    shape = depthwise.Shape(2, 100, 30, 33, 7)
    positional, options = depthwise.arguments(shape, op, options)
    positional = [depthwise.to_device(value, 'cuda') for value in positional]
    options = {name: depthwise.to_device(value, 'cuda') for name, value in options.items()}
    first, *others = (
        depthwise.as_tuple(getattr(ops, op)(*positional, **options, backend=fused))
        for _ in range(5)
    )
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize('layout', ['channels_last', 'contiguous', 'strided'])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('shape', 'dilation'), depthwise.DILATED, ids=str)
def test_gradients_of_depthwise(shape, dilation, dtype, layout, gradients):
    depthwise.assert_gradients(shape, dilation, gradients, 'cuda', dtype, layout)


@pytest.mark.smoke
@pytest.mark.parametrize('shape', [(2, 64, 56, 56, 17), (2, 112, 28, 28, 15), (1, 336, 7, 7, 7)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_gradients_of_depthwise_at_full_size(shape, dtype, gradients):
    depthwise.assert_gradients(depthwise.Shape(*shape), 1, gradients, 'cuda', dtype)


def test_every_run_gives_the_same_bits_of_depthwise_gradients(gradients):
    x = depthwise.normal(4, 96, 30, 33).cuda().requires_grad_()
    weight = depthwise.normal(96, 1, 9, 9).cuda().requires_grad_()

    def run():
        out = ops.depthwise_conv2d(x, weight, dilation=2, backend=gradients)
        return torch.autograd.grad(out.square().sum(), (x, weight))

    first = run()
    for _ in range(5):
        assert all(map(torch.equal, run(), first))
