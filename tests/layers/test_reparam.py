import pytest
import torch
from torch import nn

from overlock_mm.layers.reparam import (
    DILATED_BRANCHES,
    DilatedReparamConv,
    densify_dilated_kernel,
    fuse_conv_bn,
)
from tests.models.helpers import randomize_norms

BN = dict(type='BN')


@pytest.mark.parametrize('kernel_size', DILATED_BRANCHES)
def test_the_reparameterized_form_equals_the_training_form_in_evaluation(kernel_size):
    torch.manual_seed(0)
    layer = DilatedReparamConv(6, kernel_size, BN).double()
    randomize_norms(layer)
    layer.eval()
    x = torch.randn(2, 6, 20, 23, dtype=torch.float64)
    expected = layer(x)

    layer.reparameterize()
    assert (layer(x) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert [name for name, _ in layer.named_children()] == ['conv']

    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.reparameterize()
    assert all(torch.equal(value, weights[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize('dilation', [1, 2, 5])
def test_dense_kernel_has_the_effect_of_the_dilated_one(dilation):
    torch.manual_seed(0)
    weight = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 4, 16, 16, dtype=torch.float64)
    dense = densify_dilated_kernel(weight, dilation)
    expected = nn.functional.conv2d(x, weight, padding=dilation, dilation=dilation, groups=4)
    out = nn.functional.conv2d(x, dense, padding=dense.shape[-1] // 2, groups=4)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('bias', [True, False])
def test_fused_convolution_with_and_without_bias(bias):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5)).double()
    randomize_norms(layer)
    layer.eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weight, fused_bias = fuse_conv_bn(layer[0].weight, layer[0].bias, layer[1])
    out = nn.functional.conv2d(x, weight, fused_bias)
    assert torch.allclose(out, layer(x), rtol=0, atol=1e-12)


def test_a_norm_without_statistics_cannot_be_folded():
    with pytest.raises(ValueError, match='without running statistics'):
        norm = nn.BatchNorm2d(4, track_running_stats=False)
        fuse_conv_bn(torch.ones(4, 1, 3, 3), None, norm)
