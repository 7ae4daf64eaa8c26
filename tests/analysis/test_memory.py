"""Bytes kept for the backward pass: by hand, and of the network beside its plain formulation."""

import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.analysis import measure_activation_memory
from overlock_mm.layers.recompute import RECOMPUTE
from tests.conftest import ROOT
from tests.models.helpers import TINY
from tools.analysis_tools import get_activation_memory

CONFIG = str(ROOT / 'configs/detection/mask_rcnn_overlock_xt_1x.py')


def call(module, images):
    return module(images)


def total(network, shape=(64, 96), **kwargs):
    return measure_activation_memory(network, call, shape, **kwargs).total


@pytest.fixture(autouse=True)
def skip_initial_weights(monkeypatch):
    for name in ('trunc_normal_', 'kaiming_uniform_'):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_by_hand(dtype):
    class Stem(nn.Sequential):
        pass

    class Head(nn.Sequential):
        pass

    network = nn.Sequential(
        Stem(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)),
        # Its ReLU keeps its own result, of which the flattened view below is not another copy.
        Head(nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15, 2)),
    ).to(dtype)
    kept = measure_activation_memory(network, call, (3, 5), batch_size=2)
    pixels, size = 2 * 3 * 5, dtype.itemsize
    # The image, the convolution's result, mean and inverse deviation.
    assert kept.by_module['Stem'] == size * (pixels * 3 + pixels * 4 + 4 + 4)
    assert kept.by_module['Head'] == size * pixels * 4
    assert set(kept.by_module) == {'Stem', 'Head'}
    assert kept.total == sum(kept.by_module.values())
    assert next(network.parameters()).device.type == 'cpu'


def test_it_counts_what_a_pass_on_the_cpu_keeps():
    network = OverLoCK(TINY, context_residual=True, drop_path_rate=0.1).train()
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(torch.rand(2, 3, 64, 96))
    assert outputs
    kept = sum(storage.nbytes() for pointer, storage in seen.items() if pointer not in own)
    assert total(network, batch_size=2) == kept


def test_what_the_options_of_a_tiny_network_keep():
    nothing, cheap, blocks = (
        total(OverLoCK(TINY, context_residual=True, recompute=choice)) for choice in RECOMPUTE
    )
    assert cheap < 0.5 * nothing
    assert blocks < 0.5 * cheap


def test_variant_t_at_224():
    """A seventh of what it keeps with every operation and ContMix written out: 0.59 GB."""
    assert total(OverLoCK('t', context_residual=True), (224, 224)) < 0.09e9


def test_the_tool(capsys):
    kept = get_activation_memory.main([CONFIG, '--shape', '64', '96'])
    less = get_activation_memory.main(
        [CONFIG, '--shape', '64', '96', '--cfg-options', 'model.backbone.with_cp=True']
    )
    assert less.total < kept.total
    printed = capsys.readouterr().out
    assert f'{kept.total / 1e6:.1f}' in printed and 'DynamicBlock' in printed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([CONFIG, '--shape', '32', '96'], '--shape must be at least 64 x 64 in training, got 32'),
        ([CONFIG, '--batch-size', '0'], '--batch-size must be at least 1, got 0'),
        ([CONFIG.replace('_1x', '_deploy')], 'is in fused form, which is not trained'),
    ],
)
def test_what_it_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        get_activation_memory.main(arguments)
    assert message in capsys.readouterr().err
