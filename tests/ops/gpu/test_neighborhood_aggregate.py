"""The aggregation on a GPU: results, gradients, sizes."""

import pytest
import torch

from overlock_mm.ops import neighborhood_aggregate
from overlock_mm.ops.contmix import reference
from tests.ops import helpers
from tests.ops.gpu.helpers import DTYPES, ON_GPU, assert_close, requires_memory
from tests.ops.helpers import LAYOUTS, Shape

pytestmark = ON_GPU


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [Shape(2, 2, 1, 10, 14, 15, 7), Shape(1, 3, 1, 40, 26, 27, 13)])
def test_neighborhood_aggregate(shape, dtype, layout, dilation, backend):
    tensors = helpers.aggregate_arguments(shape, dtype, layout, device='cuda')
    k = shape.kernel_size
    out, gradients = helpers.with_gradients(
        lambda *x: neighborhood_aggregate(*x, k, dilation=dilation, backend=backend), tensors
    )
    wanted_out, wanted = helpers.with_gradients(
        lambda *x: reference.neighborhood_aggregate(*x, k, dilation), helpers.float64(tensors)
    )
    assert_close(out, wanted_out, 'output', dtype)
    for name, got, expected in zip(('weight', 'value'), gradients, wanted, strict=True):
        assert_close(got, expected, f'gradient of {name}', dtype)


@pytest.mark.large
@pytest.mark.usefixtures('unfilled')
def test_neighborhood_aggregate_beyond_2_31_elements(fused):
    requires_memory(40)
    batch, groups, channels, side, k = 1050, 2, 64, 128, 3
    assert batch * groups * channels * side * side > 2**31
    weight = torch.rand(1, groups, side, side, k * k, device='cuda', dtype=torch.bfloat16)
    weight = weight.expand(batch, -1, -1, -1, -1)
    value = torch.zeros(batch, groups, side, side, channels, device='cuda', dtype=torch.bfloat16)
    ends = [0, batch - 1]
    for end in ends:
        value[end].normal_()
    value.requires_grad_()
    out = neighborhood_aggregate(weight, value, k, backend=fused)
    (d_value,) = torch.autograd.grad(out, value, value.detach())
    small = value.detach()[ends].requires_grad_()
    wanted = neighborhood_aggregate(weight[ends], small, k, backend=fused)
    (d_small,) = torch.autograd.grad(wanted, small, small.detach())
    assert wanted.abs().max() > 0
    assert_close(out[ends], wanted, 'output', torch.bfloat16)
    assert_close(d_value[ends], d_small, 'gradient of value', torch.bfloat16)
