"""Initial weights stay within a few standard deviations."""

import pytest
import torch
from torch import nn

from overlock_mm.layers.basic import initialise_projections
from overlock_mm.models import ContMixBlock, OverLoCK

STD, BOUND = 0.02, 0.12001  # in float32, 6 * 0.02 is a little more


@pytest.mark.parametrize('seed', range(8))
def test_no_weight_of_a_hundred_standard_deviations(seed):
    """Of 2^24 draws one is an end point on average: 2.0 with the default bounds."""
    torch.manual_seed(seed)
    layer = nn.Linear(4096, 4096)
    initialise_projections(layer)
    assert layer.weight.abs().max() <= BOUND
    # Standard errors: 3.5e-6 and 5e-6.
    assert abs(layer.weight.std().item() - STD) < 2e-5
    assert abs(layer.weight.mean().item()) < 3e-5


def test_every_other_weight_is_that_of_the_default_bounds():
    layer = nn.Linear(2048, 2048)
    torch.manual_seed(0)
    initialise_projections(layer)
    torch.manual_seed(0)
    published = nn.init.trunc_normal_(torch.empty(2048, 2048), std=STD)
    assert torch.equal(layer.weight, published.clamp(-6 * STD, 6 * STD))


def test_biases_of_the_stand_alone_block_are_drawn_within_bounds(monkeypatch):
    """They are too few for a test by seeds: an end point is one draw of millions."""
    drawn = []
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda _, **settings: drawn.append(settings))
    ContMixBlock(32)
    assert drawn == [dict(std=STD, a=-6 * STD, b=6 * STD)] * 2


@pytest.mark.slow
def test_network():
    torch.manual_seed(0)
    for name, weight in OverLoCK('t').named_parameters():
        if weight.dim() > 1 and 'scale' not in name and weight.unique().numel() > 1:
            assert weight.abs().max() <= BOUND or 'rel' in name, name
