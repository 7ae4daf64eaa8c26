"""Initial weights of necks and heads, by statistics, after what a run does before its first step.

The published runs never called ``init_weights()``. What the constructors of torch and of mmcv's
``ConvModule`` draw is written down here from their documentation.
"""

import math

import mmengine.model.weight_init
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from overlock_mm import OverLoCK
from tests.models.helpers import TINY


def initialised(cfg):
    """The model of a config on a tiny backbone, its weights drawn as a runner has them drawn."""
    backbone = dict(arch=TINY, norm_cfg=dict(type='BN'), init_cfg=None)
    cfg.model.backbone.update(backbone)
    widths = list(OverLoCK(TINY).out_channels)
    if cfg.default_scope == 'mmdet':
        cfg.model.neck.in_channels = widths
    else:
        cfg.model.decode_head.update(in_channels=widths, channels=128)
        cfg.model.auxiliary_head.in_channels = widths[2]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def uniform(fan_in):
    """Deviation of torch's own draw for a convolution or a linear layer: +-1 / sqrt(fan_in)."""
    return 1 / math.sqrt(3 * fan_in)


def constructed(model):
    """Name of a layer -> the deviation that its constructor gives its weight, and its bias."""
    expected = {}
    for name, module in model.named_modules():
        if name.startswith('backbone.') or not isinstance(
            module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        ):
            continue
        weight = module.weight
        fan_in = weight[0].numel()
        if name.endswith('.conv'):  # of a ConvModule: He's normal draw by the outputs, bias 0
            fan_out = weight.shape[0] * weight[0, 0].numel()
            expected[name] = math.sqrt(2 / fan_out), 0.0
        else:
            expected[name] = uniform(fan_in), uniform(fan_in)
    return expected


@pytest.mark.parametrize(
    'name',
    [
        'detection/mask_rcnn_overlock_t_1x',
        'detection/mask_rcnn_overlock_t_3x',
        'segmentation/upernet_overlock_t',
    ],
)
def test_necks_and_heads_keep_what_their_constructors_drew(name, load):
    model = initialised(load(f'{name}.py'))
    expected = constructed(model)
    assert len(expected) > 8
    for layer, (deviation, bias_deviation) in expected.items():
        module = model.get_submodule(layer)
        # Four deviations of the estimate, which for a uniform draw are fewer.
        tolerance = 4 / math.sqrt(2 * module.weight.numel())
        assert module.weight.std().item() == pytest.approx(deviation, rel=tolerance), layer
        if module.bias is not None and module.bias.numel() >= 64:
            tolerance = 4 / math.sqrt(2 * module.bias.numel())
            assert module.bias.std().item() == pytest.approx(bias_deviation, rel=tolerance), layer


#: Layer of Mask R-CNN, the same of the cascade: deviations with the constructors' draw and mmdet's.
FIGURES = {
    ('rpn_head.rpn_cls', 'rpn_head.rpn_cls'): (0.036, 0.010),
    ('rpn_head.rpn_reg', 'rpn_head.rpn_reg'): (0.036, 0.010),
    ('neck.fpn_convs.0.conv', 'neck.fpn_convs.0.conv'): (0.0295, 0.0208),
    ('roi_head.bbox_head.shared_fcs.0', 'roi_head.bbox_head.1.shared_fcs.0'): (0.0052, 0.0121),
    ('roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.1.fc_cls'): (0.0180, 0.0100),
    ('roi_head.bbox_head.fc_reg', 'roi_head.bbox_head.1.fc_reg'): (0.0180, 0.0010),
    # mmdet's cascade does not reach the `init_weights()` of its mask heads.
    ('roi_head.mask_head.conv_logits', 'roi_head.mask_head.1.conv_logits'): (0.036, 0.036),
}


def test_the_cascade_starts_as_its_peers_did(load):
    """They called ``init_weights()``, with mmdet's own distributions."""
    published = initialised(load('detection/mask_rcnn_overlock_t_1x.py'))
    peers = initialised(load('detection/cascade_overlock_t.py'))
    for (ours, theirs), (constructors, libraries) in FIGURES.items():
        for model, layer, deviation in (
            (published, ours, constructors),
            (peers, theirs, libraries),
        ):
            actual = model.get_submodule(layer).weight.std().item()
            # The smallest of these layers has 768 weights.
            assert actual == pytest.approx(deviation, rel=0.08), layer


@pytest.mark.parametrize(
    'name',
    [
        'classification/overlock_t',
        'detection/mask2former_ins_overlock_t',
        'detection/mask_rcnn_overlock_t_1x',
        'detection/rtmdet_ins_overlock_t',
        'segmentation/mask2former_overlock_t',
        'segmentation/upernet_overlock_t',
    ],
)
def test_no_part_draws_from_a_distribution_that_reaches_far_out(name, load, build, monkeypatch):
    """Between bounds of a hundred deviations, ``trunc_normal_`` draws the bounds now and then."""
    reach = []

    def note(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, *args, **kwargs):
        reach.append(max(abs(a - mean), abs(b - mean)) / std)
        return tensor

    monkeypatch.setattr(torch.nn.init, 'trunc_normal_', note)
    # mmengine has a function of its own.
    monkeypatch.setattr(mmengine.model.weight_init, '_no_grad_trunc_normal_', note)
    cfg = load(f'{name}.py')
    cfg.model.backbone.init_cfg = None
    build(cfg).init_weights()
    assert reach
    assert max(reach) <= 7
