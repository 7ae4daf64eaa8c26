"""Triton kernels against the definition, run by Triton's interpreter on the CPU.

Not collected by itself: tests/ops/test_triton.py runs this file in a process of its
own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import pytest
import torch

from overlock_mm.ops import contmix, neighborhood_aggregate, self_test
from overlock_mm.ops.contmix import reference, triton_backend
from overlock_mm.ops.contmix import self_test as contmix_self_test
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from tests.ops import helpers
from tests.ops.helpers import NAMES, Shape
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures('nan_filled')

SCALE = 0.3
#: Every layout and dtype, windows below and above the 16 taps of a matrix product, a map as
#: small as its window, and one wider than a tile.
CASES = [
    (Shape(2, 1, 10, 10, 6, 7, 5), torch.float32, 'contiguous'),
    (Shape(1, 1, 14, 8, 7, 7, 7), torch.bfloat16, 'channels_last'),
    (Shape(1, 2, 8, 12, 4, 40, 3, 64), torch.float16, 'strided'),
    (Shape(1, 1, 20, 32, 17, 18, 17, 4), torch.float32, 'strided'),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Larger tiles save time here; programs that leave partial sums visit several of them."""
    monkeypatch.setattr(triton_backend, 'PARTIAL_SUMS', 8)
    monkeypatch.setattr(triton_backend, 'TOKENS', 32)
    monkeypatch.setattr(triton_backend, 'TILE_ELEMENTS', 2**15)


def assert_gradient_close(got, expected, name, dtype):
    # In half precision a gradient starts from an output that has been rounded already.
    roundings = 1 if dtype == torch.float32 else 2
    error = (got.double() - expected).abs().max()
    assert error <= roundings * TOLERANCES[dtype] * expected.abs().max(), name


def run(tensors, kernel_size):
    return helpers.with_gradients(
        lambda *x: contmix(*x, kernel_size, scale=SCALE, backend='triton'), tensors
    )


@pytest.mark.parametrize(('shape', 'dtype', 'layout'), CASES, ids=str)
def test_contmix(shape, dtype, layout):
    tensors = helpers.contmix_arguments(shape, dtype, layout)
    out, gradients = run(tensors, shape.kernel_size)
    wanted_out, wanted = helpers.with_gradients(
        lambda *x: reference.contmix(*x, shape.kernel_size, SCALE), helpers.float64(tensors)
    )
    assert out.stride() == torch.empty_like(tensors[2]).stride()
    assert_close(out, wanted_out, 'output')
    for name, got, expected in zip(NAMES, gradients, wanted, strict=True):
        assert_gradient_close(got, expected, name, dtype)


def test_contmix_with_float32_parameters():
    tensors = helpers.contmix_arguments(
        Shape(1, 2, 8, 8, 6, 5, 5), torch.bfloat16, parameter_dtype=torch.float32
    )
    out, gradients = run(tensors, 5)
    wanted_out, wanted = helpers.with_gradients(
        lambda *x: reference.contmix(*x, 5, SCALE), helpers.float64(tensors)
    )
    assert_close(out, wanted_out, 'output')
    for name, tensor, got, expected in zip(NAMES, tensors, gradients, wanted, strict=True):
        assert got.dtype == tensor.dtype
        assert_gradient_close(got, expected, name, torch.bfloat16)


def test_gradients_do_not_depend_on_the_number_of_partial_sums(monkeypatch):
    tensors = helpers.contmix_arguments(Shape(2, 1, 8, 8, 9, 8, 3), torch.float32)
    _, few = run(tensors, 3)
    monkeypatch.setattr(triton_backend, 'PARTIAL_SUMS', 1024)
    _, many = run(tensors, 3)
    for name, got, expected in zip(NAMES, many, few, strict=True):
        assert_close(got, expected.double(), f'gradient of {name}')


@pytest.mark.parametrize(
    ('shape', 'dilation', 'dtype', 'layout'),
    [
        (Shape(2, 2, 1, 10, 7, 9, 5), 1, torch.float32, 'contiguous'),
        (Shape(1, 2, 1, 20, 8, 7, 3), 2, torch.float16, 'strided'),
        (Shape(1, 1, 1, 16, 11, 10, 3), 3, torch.bfloat16, 'channels_last'),
        (Shape(1, 1, 1, 8, 13, 14, 13), 1, torch.float32, 'strided'),
    ],
    ids=str,
)
def test_neighborhood_aggregate(shape, dilation, dtype, layout):
    tensors = helpers.aggregate_arguments(shape, dtype, layout)
    k = shape.kernel_size
    out, gradients = helpers.with_gradients(
        lambda *x: neighborhood_aggregate(*x, k, dilation=dilation, backend='triton'), tensors
    )
    wanted_out, wanted = helpers.with_gradients(
        lambda *x: reference.neighborhood_aggregate(*x, k, dilation), helpers.float64(tensors)
    )
    assert out.stride() == torch.empty_like(tensors[1]).stride()
    assert_close(out, wanted_out, 'output')
    for name, got, expected in zip(('weight', 'value'), gradients, wanted, strict=True):
        assert_close(got, expected, f'gradient of {name}')


def test_tensors_whose_strides_are_zero():
    """Expanded ones, as a sum hands them to its gradient, and views behind other elements."""
    tensors = helpers.contmix_arguments(Shape(1, 1, 8, 8, 4, 5, 3, 4), torch.float32)
    query, key, value, *parameters = (x.detach() for x in tensors)
    maps = [x.expand(2, *x.shape[1:]) for x in (query, key, value)]
    behind = [torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x) for x in parameters]
    assert all(x.storage_offset() == 1 for x in behind)
    results = []
    for arguments in ((*maps, *behind), (*(x.contiguous() for x in maps), *parameters)):
        leaves = [x.requires_grad_() for x in arguments]
        out = contmix(*leaves, 3, backend='triton')
        results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_a_gradient_that_overflowed_is_not_hidden():
    """By it a gradient scaler knows that it must skip the step."""
    tensors = helpers.contmix_arguments(Shape(1, 1, 8, 8, 5, 6, 3, 4), torch.float16)
    out = contmix(*tensors, 3, backend='triton')
    grad_out = torch.zeros_like(out)
    grad_out[0, 0, 3, 2, 4] = torch.inf
    for name, got in zip(NAMES, torch.autograd.grad(out, tensors, grad_out), strict=True):
        assert not got.isfinite().all(), name


def test_nan_and_infinity_stay_with_their_token():
    # Rounding to TF32 handles bits, and must not make numbers of them.
    shape = Shape(1, 1, 16, 8, 5, 5, 5)
    tensors = helpers.contmix_arguments(shape, torch.float16, parameter_dtype=torch.float32)
    with torch.no_grad():
        out = contmix(*tensors, 5, scale=SCALE, backend='triton')
        tensors[0][0, 0, 0, 1, 2] = torch.nan
        tensors[0][0, 0, 0, 3, 3] = torch.inf
        broken = contmix(*tensors, 5, scale=SCALE, backend='triton')
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1, 2] = expected[3, 3] = True
    assert torch.equal(broken.isnan().all(2)[0, 0], expected)
    assert torch.equal(broken[..., ~expected], out[..., ~expected])


@pytest.mark.parametrize('gradient', [False, True], ids=['forward', 'backward'])
@pytest.mark.parametrize(('op', 'sizes'), [('contmix', (16, 9)), ('neighborhood_aggregate', ())])
def test_they_pass_the_self_test(op, sizes, gradient, monkeypatch):
    monkeypatch.setattr(self_test, 'DEVICES', ('cpu',))
    monkeypatch.setattr(contmix_self_test, 'GROUPS', 2)  # more take long here
    call = Call(op, torch.device('cpu'), torch.bfloat16, 3, 1, 8, *sizes, gradient=gradient)
    assert BACKENDS.why_not('triton', call) == []
    assert self_test._verdicts['contmix', 'triton', call] is None
