"""Parameters exactly, multiply-adds by hand and beside the published figures."""

import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.analysis import measure_complexity
from overlock_mm.layers.contmix import ContMix
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT
from tests.models.helpers import TINY
from tools.analysis_tools import get_flops

# The authors' table at 224 x 224 (G), and exact counts of both forms.
PUBLISHED = {
    'xt': (2.6, 16_453_712, 17_307_272),
    't': (5.5, 33_467_040, 34_990_472),
    's': (9.7, 56_156_452, 58_309_772),
    'b': (16.7, 94_942_528, 98_012_968),
}
# Counted apart from this code, in fused form (G): convolutions; with affinity and projection;
# with aggregation too.
COUNTED = {
    'xt': (2.57, 2.67, 2.70),
    't': (5.38, 5.58, 5.64),
    's': (9.27, 9.79, 9.89),
    'b': (16.44, 16.94, 17.09),
}


@pytest.fixture(autouse=True)
def skip_initial_weights(monkeypatch):
    for name in ('trunc_normal_', 'kaiming_uniform_', 'normal_'):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize(
    'variant',
    [pytest.param(v, marks=pytest.mark.slow if v in 'sb' else ()) for v in PUBLISHED],
)
def test_the_published_figures(variant, capsys):
    forms = get_flops.main([str(ROOT / f'configs/classification/overlock_{variant}.py')])
    flops, deploy, training = PUBLISHED[variant]
    assert forms['reparameterized'].parameters == deploy
    assert forms['training'].parameters == training
    count = forms['reparameterized']
    assert count.total / 1e9 == pytest.approx(flops, rel=0.04)
    multiply_adds = (count.dense, count.total - count.aggregation, count.total)
    assert [n / 1e9 for n in multiply_adds] == pytest.approx(COUNTED[variant], abs=0.01)
    assert forms['training'].contmix == count.contmix
    assert forms['training'].dense > count.dense
    # What folding saves (norms, layer scales, additions) does not count.
    assert forms['fused'].dense == count.dense
    assert forms['fused'].contmix == count.contmix
    assert forms['fused'].parameters < count.parameters
    printed = capsys.readouterr().out
    assert f'{deploy:,}' in printed and f'{training:,}' in printed
    assert 'count as one' in printed and 'published figures' in printed


def test_images_of_five_bands():
    counts = [
        measure_complexity(OverLoCK('xt', in_channels=bands), lambda net, x: net(x), (64, 64))
        for bands in (3, 5)
    ]
    # The first convolution, with stride 2.
    stem = next(m.weight for m in OverLoCK('xt').modules() if isinstance(m, nn.Conv2d))
    more = counts[1].dense - counts[0].dense
    assert more == 2 * stem.shape[0] * stem[0, 0].numel() * 32 * 32


def test_contmix_by_hand():
    module = ContMix(32, 16, 32, 2, 7, 5, dict(type='BN'))

    def forward(copy, image):
        maps = [torch.empty(1, width, *image.shape[2:], device='meta') for width in (32, 16, 32)]
        return copy(*maps)

    count = measure_complexity(module, forward, (14, 20))
    tokens, groups, taps, channels = 14 * 20, 4, 25 + 49, 32 // 2 // 4
    # Both kernels share it.
    assert count.affinity == tokens * groups * channels * 49
    assert count.projection == tokens * groups * 49 * taps
    assert count.aggregation == tokens * groups * taps * channels
    assert count.dense == tokens * (32 * 16 + 32 * 32) + 49 * 16 * 16
    assert next(module.parameters()).device.type == 'cpu'


@pytest.mark.parametrize(
    ('config', 'scope'),
    [
        ('detection/mask_rcnn_overlock_xt_1x', 'region proposals'),
        ('segmentation/upernet_overlock_xt_deploy', 'decode head'),
    ],
)
def test_other_tasks(config, scope, capsys):
    path = str(ROOT / f'configs/{config}.py')
    forms = get_flops.main([path, '--shape', '128', '160'])
    assert set(forms) == (
        {'fused'} if 'deploy' in config else {'training', 'reparameterized', 'fused'}
    )
    assert all(count.dense > count.contmix > 0 for count in forms.values())
    assert scope in capsys.readouterr().out


def test_a_classifier_with_a_head_of_mmpretrain():
    cfg = load_config(ROOT / 'configs/demo/classifier_overlock_shapes.py')
    cfg.model.backbone.update(arch=TINY, out_indices=(3,), output_norm=True)
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head = dict(
        type='LinearClsHead', num_classes=5, in_channels=OverLoCK(TINY).out_channels[-1]
    )
    forms, _ = get_flops.measure(cfg, (64, 64))
    assert forms['training'].parameters > forms['fused'].parameters


def test_a_shape_that_is_too_small(capsys):
    with pytest.raises(SystemExit):
        get_flops.main([str(ROOT / 'configs/classification/overlock_t.py'), '--shape', '16', '64'])
    assert '--shape must be at least 32 x 32, got 16 x 64' in capsys.readouterr().err
