"""Under autocast everything is finite and near float32, for extreme activations too."""

import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.layers.basic import GRN, ConvMLP, LayerNorm2d, LayerScale, SqueezeExcite
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.layers.dynamic_block import DynamicBlock
from tests.models.helpers import TINY, randomize_parameters

BN = dict(type='BN')
DTYPES = [torch.bfloat16, torch.float16]
#: Largest difference from float32, in units of the dtype's eps and of the largest value: one
#: layer or block; a network in evaluation; in training, where the statistics of few samples
#: amplify every rounding.
LAYER, EVALUATION, TRAINING = 4, 8, 16

LAYERS = {
    'LayerNorm2d': lambda: LayerNorm2d(64),
    'GRN': lambda: GRN(64),
    'SqueezeExcite': lambda: SqueezeExcite(64),
    'LayerScale': lambda: LayerScale(64),
    'ConvMLP': lambda: ConvMLP(64, 128),
    'BasicBlock': lambda: BasicBlock(64, 7, 2, 0.0, True, BN),
    'DynamicBlock': lambda: DynamicBlock(64, 16, 2, 7, 5, 2, 0.0, False, BN, None),
}
#: Features, context and prior; the others take one map of 64 channels.
CHANNELS = {'DynamicBlock': (64, 16, 16)}


def initialized(module):
    """Weights of convolutions as the network draws them, all others away from 0 and 1."""
    randomize_parameters(module)
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.trunc_normal_(m.weight, std=0.02)
    return module


def assert_near(actual, expected, bound, name):
    assert actual.isfinite().all(), name
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    eps = torch.finfo(actual.dtype).eps
    assert error <= bound * eps, f'{name}: off by {error / eps:.1f} eps, may be off by {bound}'


def assert_finite_gradients(outputs, module, dtype, scale):
    # A loss of the order of one, and float16 needs its loss scaled up, as amp's scaler does.
    factor = (2**10 if dtype == torch.float16 else 1) / scale
    (factor * sum(out.float().mean() for out in outputs)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('scale', [1, 1e4])
@pytest.mark.parametrize('layer', LAYERS)
def test_layers(layer, scale, dtype):
    """A GRN of 1e4 that takes its norms in float16 gives NaN."""
    torch.manual_seed(0)
    module = initialized(LAYERS[layer]()).train()
    maps = [torch.rand(2, channels, 24, 24) for channels in CHANNELS.get(layer, (64,))]
    maps = [((x * 2 - 1) * scale).to(dtype) for x in maps]
    with torch.no_grad():
        expected = module(*(x.float() for x in maps))
    with torch.autocast('cpu', dtype):
        out = module(*maps)
    assert out.dtype == dtype
    assert_near(out, expected, LAYER, layer)
    assert_finite_gradients([out], module, dtype, scale)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('scale', [1, 1e4])
@pytest.mark.parametrize('training', [True, False])
def test_network(training, scale, dtype):
    torch.manual_seed(0)
    model = randomize_parameters(OverLoCK(TINY, context_residual=True)).train(training)
    image = torch.randn(2, 3, 96, 128) * scale
    with torch.no_grad():
        expected = model(image)
    with torch.autocast('cpu', dtype):
        outputs = model(image)
    bound = TRAINING if training else EVALUATION
    for index, (out, reference) in enumerate(zip(outputs, expected, strict=True)):
        assert out.dtype == dtype
        assert_near(out, reference, bound, f'output {index}')
    assert_finite_gradients(outputs, model, dtype, 1)


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_network_whose_weights_are_lowered_too(dtype):
    torch.manual_seed(0)
    model = randomize_parameters(OverLoCK(TINY)).eval()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected = model(image)
        outputs = model.to(dtype)(image.to(dtype))
    for index, (out, reference) in enumerate(zip(outputs, expected, strict=True)):
        assert_near(out, reference, 2 * EVALUATION, f'output {index}')
