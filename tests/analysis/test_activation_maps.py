"""Activation maps against their formula; what they explain against the libraries' own numbers."""

import numpy as np
import pytest
import torch
from torch import nn

from overlock_mm.analysis.activation_maps import DEFAULT_METHODS, METHODS, activation_map
from overlock_mm.analysis.targets import Score


class Linear(Score):
    """Features, their mean and a linear layer: here Grad-CAM is the weighted sum of features."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)))
        self.model.requires_grad_(False)

    def _score(self, inputs):
        return self.model(inputs).mean((2, 3))[:, 2]


@pytest.fixture
def image():
    return torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def stretched(heat):
    heat = heat - heat.min()
    return heat / heat.max()


@pytest.mark.parametrize('method', ['gradcam', 'hirescam', 'layercam'])
def test_maps_of_a_linear_network_are_known(image, method):
    score = Linear()
    features = score.model[0](image)[0]
    weights = score.model[1].weight[2].flatten()
    if method == 'layercam':
        weights = weights.clamp(min=0)
    expected = (weights[:, None, None] * features).sum(0).clamp(min=0).numpy()
    heat = activation_map(score, score.model[0], image, method)
    assert heat.shape == (12, 16)
    np.testing.assert_allclose(heat, stretched(expected), atol=1e-5)


@pytest.mark.parametrize('method', METHODS)
def test_every_method_gives_a_map(image, method):
    score = Linear()
    heat = activation_map(score, score.model[0], image, method)
    assert heat.shape == (12, 16)
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1, abs=1e-4)
    # Nothing stays hooked to the model.
    assert not score.model[0]._forward_hooks


def test_nothing_speaks_for_it(image):
    score = Linear()
    score.model[0].weight.zero_()
    score.model[0].bias.fill_(1.0)
    score.model[1].weight.fill_(-1.0)
    assert not activation_map(score, score.model[0], image, 'gradcam').any()


@pytest.mark.parametrize('method', sorted(set(METHODS) - {'eigencam', 'scorecam'}))
def test_a_stage_that_no_head_reads(image, method):
    class Unread(Linear):
        def _score(self, inputs):
            self.model[1](self.model[0](inputs))
            return self.model[0](inputs).mean((1, 2, 3))

    score = Unread()
    with pytest.raises(ValueError, match='No gradient of the score reaches the stage'):
        activation_map(score, score.model[1], image, method)


def test_weights_of_a_run_that_diverged(image):
    score = Linear()
    score.model[1].weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='not finite'):
        activation_map(score, score.model[0], image, 'gradcam')


def test_an_unknown_method(image):
    score = Linear()
    with pytest.raises(ValueError, match="one of gradcam, .* got 'cam'"):
        activation_map(score, score.model[0], image, 'cam')
    assert set(DEFAULT_METHODS.values()) <= set(METHODS)
