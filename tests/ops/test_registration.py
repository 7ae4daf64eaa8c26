"""What torch knows of the operators: schemas, fakes, autograd, autocast, compilation."""

import pytest
import torch

from overlock_mm.layers.dynamic_block import DynamicBlock
from overlock_mm.ops import contmix, neighborhood_aggregate
from overlock_mm.ops.contmix import reference
from tests.models.helpers import randomize_parameters
from tests.ops import helpers
from tests.ops.helpers import LAYOUTS, Shape
from tests.ops.test_cpu_backends import BACKENDS
from tests.tolerances import assert_close

SMALL = Shape(2, 2, 3, 2, 6, 5, 3, 4)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_opcheck(layout, backend):
    tensors = helpers.contmix_arguments(SMALL, torch.float32, layout)
    torch.library.opcheck(torch.ops.overlock_mm.contmix.default, (*tensors, 3, 0.5, backend))
    pair = helpers.aggregate_arguments(SMALL, torch.float32, layout)
    operator = torch.ops.overlock_mm.neighborhood_aggregate.default
    torch.library.opcheck(operator, (*pair, 3, 1, backend))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_opcheck_of_the_backward_operators(layout, backend):
    # Autograd of these is an error, of which opcheck wants to know nothing.
    tests = ('test_schema', 'test_faketensor')
    tensors = [x.detach() for x in helpers.contmix_arguments(SMALL, torch.float32, layout)]
    out, logsumexp = torch.ops.overlock_mm.contmix(*tensors, 3, 0.5, backend)
    arguments = (torch.ones_like(out), *tensors, out, logsumexp, 3, 0.5, backend)
    operator = torch.ops.overlock_mm.contmix_backward.default
    torch.library.opcheck(operator, arguments, test_utils=tests)
    pair = [x.detach() for x in helpers.aggregate_arguments(SMALL, torch.float32, layout)]
    operator = torch.ops.overlock_mm.neighborhood_aggregate_backward.default
    torch.library.opcheck(operator, (pair[1], *pair, 3, 1, backend), test_utils=tests)


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradcheck(backend):
    tensors = helpers.contmix_arguments(SMALL, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: contmix(*x, 3, scale=0.5, backend=backend), tensors, fast_mode=False
    )
    pair = helpers.aggregate_arguments(Shape(1, 2, 1, 2, 7, 6, 3), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: neighborhood_aggregate(*x, 3, dilation=2, backend=backend), pair
    )


def test_gradients_of_some_inputs_only():
    tensors = [x.detach() for x in helpers.contmix_arguments(SMALL, torch.float64)]
    tensors[1].requires_grad_()
    contmix(*tensors, 3).sum().backward()
    assert tensors[1].grad.abs().sum() > 0
    assert all(x.grad is None for x in tensors if x is not tensors[1])


@pytest.mark.parametrize('backend', BACKENDS)
def test_second_derivatives(backend):
    """By the definition, as for the depthwise operators."""
    tensors = helpers.contmix_arguments(Shape(1, 1, 2, 1, 3, 4, 3, 2), torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *x: contmix(*x, 3, scale=0.5, backend=backend), tensors, fast_mode=True
    )
    pair = helpers.aggregate_arguments(Shape(1, 1, 1, 1, 7, 6, 3), torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *x: neighborhood_aggregate(*x, 3, dilation=2, backend=backend), pair, fast_mode=True
    )


def test_the_operators_of_the_gradient_have_none():
    weight, value = helpers.aggregate_arguments(SMALL, torch.float64)
    gradient = torch.ops.overlock_mm.neighborhood_aggregate_backward
    with pytest.raises(RuntimeError, match='have no derivative. Remedy'):
        gradient(value, weight, value, 3, 1, None)[0].sum().backward()


@pytest.mark.parametrize('backend', BACKENDS)
def test_autocast_lowers_activations_and_nothing_inside(backend):
    tensors = helpers.contmix_arguments(SMALL, torch.float32)
    lowered = [x.bfloat16() for x in tensors[:3]] + tensors[3:]
    expected, gradients = helpers.with_gradients(
        lambda *x: contmix(*x, 3, backend=backend), lowered
    )
    # A mixture, as a network hands it over.
    tensors[0] = tensors[0].detach().bfloat16().requires_grad_()

    def under_autocast(*x):
        with torch.autocast('cpu', torch.bfloat16):
            return contmix(*x, 3, backend=backend)

    actual, actual_gradients = helpers.with_gradients(under_autocast, tensors)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)
    for tensor, got, wanted in zip(tensors, actual_gradients, gradients, strict=True):
        assert got.dtype == tensor.dtype
        assert torch.equal(got, wanted.to(got.dtype))

    double = helpers.contmix_arguments(SMALL, torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        assert contmix(*double, 3, backend=backend).dtype == torch.float64


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_focus_net_block_compiles_into_one_graph(backend):
    block = DynamicBlock(
        channels=16,
        context_channels=8,
        groups=2,
        kernel_size=7,
        small_kernel_size=5,
        mlp_ratio=2,
        drop_path_rate=0.0,
        is_first=False,
        norm_cfg=dict(type='BN'),
        contmix_backend=backend,
    )
    randomize_parameters(block).double().eval()
    torch.manual_seed(0)
    maps = [torch.randn(2, c, 9, 8, dtype=torch.float64) for c in (16, 8, 8)]
    leaves = [x.requires_grad_() for x in (*maps, *block.parameters())]

    def results(function):
        out = function(*maps)
        return out, torch.autograd.grad(out.square().sum(), leaves)

    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    (out, gradients), (expected, wanted) = results(compiled), results(block)
    # The same kernels in another order of additions, through some twenty layers.
    assert (out - expected).abs().max() <= 1e-11 * expected.abs().max()
    scale = max(x.abs().max() for x in wanted)
    for a, b in zip(gradients, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-11 * scale


@pytest.mark.slow
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_inductor(layout, backend):
    """The compiler that users get relies on the strides that the fakes promise."""
    tensors = helpers.contmix_arguments(SMALL, torch.float32, layout)
    compiled = torch.compile(lambda *x: contmix(*x, 3, backend=backend), fullgraph=True)
    actual = helpers.with_gradients(compiled, tensors)
    expected = helpers.with_gradients(
        lambda *x: reference.contmix(*x, 3, 1.0), helpers.float64(tensors)
    )
    assert actual[0].stride() == torch.empty_like(tensors[2]).stride()
    assert_close(actual[0], expected[0])
    for got, wanted in zip(actual[1], expected[1], strict=True):
        assert_close(got, wanted)
