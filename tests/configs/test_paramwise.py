"""Weight decay by parameter, and learning rates by depth."""

import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.engine import layer_of
from overlock_mm.layers.basic import GRN, LayerScale
from tests.configs.conftest import ROOT, build_optimizer
from tests.models.helpers import TINY

PARENTS = (
    'detection/mask_rcnn_overlock_t_1x',
    'segmentation/upernet_overlock_t',
    'classification/overlock_t',
)
TINY_DEPTHS = TINY['depths']


def inherit(tmp_path, parent, setting, *lines):
    path = tmp_path / 'child.py'
    bases = [str(ROOT / f'{parent}.py'), str(ROOT / f'_base_/paramwise/{setting}.py')]
    path.write_text(f'_base_ = {bases}\n' + '\n'.join(lines))
    return Config.fromfile(path)


def groups_by_name(model, optimizer):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize('parent', PARENTS)
def test_no_decay_spares_what_it_says_and_nothing_else(parent, tmp_path, build):
    cfg = inherit(
        tmp_path, parent, 'no_decay', 'optim_wrapper = dict(paramwise_cfg={{_base_.paramwise_cfg}})'
    )
    cfg.model.backbone.arch, cfg.model.backbone.init_cfg = 'xt', None
    model = build(cfg)
    groups = groups_by_name(model, build_optimizer(model, cfg))
    actual = {name: group['weight_decay'] for name, group in groups.items()}
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, GRN, LayerScale)
    not_decayed = {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, norms) or name == 'bias' or name.startswith('rpb_')
    }
    assert {name for name, decay in actual.items() if decay == 0} == not_decayed
    assert {actual[name] for name in actual.keys() - not_decayed} == {
        cfg.optim_wrapper.optimizer.weight_decay
    }
    for key in cfg.paramwise_cfg.custom_keys:
        assert any(key in name for name in actual), key


@pytest.mark.parametrize(
    'constructor', ['GroupedOptimWrapperConstructor', 'OverLoCKLayerDecayConstructor']
)
def test_parameters_of_equal_settings_share_a_group(constructor):
    model = nn.Module()
    model.backbone, model.head = OverLoCK(TINY), nn.Linear(2, 2)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
        constructor=constructor,
        paramwise_cfg=dict(
            decay_rate=1.0,
            bias_decay_mult=0.0,
            custom_keys={'head': dict(lr_mult=2.0), 'norm3': dict(decay_mult=0.0, eps=1e-5)},
        ),
    )
    optimizer = build_optim_wrapper(model, cfg).optimizer
    settings = {
        name: (group['lr'], group['weight_decay'], group['eps'])
        for name, group in groups_by_name(model, optimizer).items()
    }
    assert len(optimizer.param_groups) == len(set(settings.values())) == 4
    for name, actual in settings.items():
        if name.startswith('head.'):
            expected = (2.0, 0.5, 1e-8)
        elif 'norm3' in name:
            expected = (1.0, 0.0, 1e-5)
        else:
            expected = (1.0, 0.0 if name.endswith('.bias') else 0.5, 1e-8)
        assert actual == expected, name


def test_a_group_is_logged_in_one_line(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
        constructor='GroupedOptimWrapperConstructor',
        paramwise_cfg=dict(bias_decay_mult=0.0),
    )
    build_optim_wrapper(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), cfg)
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == [
        'Parameter group: 2 tensors, lr 1, weight decay 0.5',
        'Parameter group: 2 tensors, lr 1, weight decay 0',
    ]


def test_layer_of_counts_the_blocks_in_the_order_of_execution():
    model = OverLoCK(TINY, context_residual=True)
    last = sum(TINY_DEPTHS)
    layers = {name: layer_of(name, TINY_DEPTHS) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(last + 2))
    expected = {
        'base_net.downsamples.0.0.conv.weight': 0,
        'base_net.stages.0.0.dwconv.weight': 1,
        'base_net.downsamples.1.conv.weight': 1 + sum(TINY_DEPTHS[:1]),
        'overview_net.downsample.conv.weight': 1 + sum(TINY_DEPTHS[:3]),
        'focus_net.prior_proj.weight': 1 + sum(TINY_DEPTHS[:4]),
        f'focus_net.stages.0.{TINY_DEPTHS[4] - 1}.dwconv1.weight': sum(TINY_DEPTHS[:5]),
        'focus_net.downsample_context.conv.weight': 1 + sum(TINY_DEPTHS[:5]),
        f'focus_net.stages.1.{TINY_DEPTHS[5] - 1}.dwconv2.weight': last,
        'norm1.weight': last + 1,
        'overview_residual.proj.weight': last + 1,
    }
    assert {name: layers[name] for name in expected} == expected
    with pytest.raises(ValueError, match="no parameter 'neck.conv.weight'"):
        layer_of('neck.conv.weight', TINY_DEPTHS)


def test_layer_decay_multiplies_the_other_settings():
    model = nn.Module()
    model.backbone, model.head = OverLoCK(TINY), nn.Linear(2, 2)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
        constructor='OverLoCKLayerDecayConstructor',
        paramwise_cfg=dict(
            decay_rate=0.5, norm_decay_mult=0.0, custom_keys={'norm3': dict(lr_mult=4.0)}
        ),
    )
    optimizer = build_optim_wrapper(model, cfg).optimizer
    groups = groups_by_name(model, optimizer)
    assert len(groups) == len(list(model.parameters()))
    top = sum(TINY_DEPTHS) + 1
    assert groups['backbone.base_net.downsamples.0.0.conv.weight']['lr'] == 0.5**top
    assert groups['backbone.base_net.stages.0.0.norm.weight']['lr'] == 0.5 ** (top - 1)
    assert groups['backbone.base_net.stages.0.0.norm.weight']['weight_decay'] == 0
    assert groups['backbone.norm3.weight']['lr'] == 4.0
    assert groups['head.weight']['lr'] == 1.0
    assert groups['head.weight']['weight_decay'] == 0.5


def test_layer_decay_setting(tmp_path, build):
    cfg = inherit(
        tmp_path,
        PARENTS[0],
        'layer_decay',
        'optim_wrapper = dict(constructor={{_base_.constructor}},'
        ' paramwise_cfg={{_base_.paramwise_cfg}})',
    )
    cfg.model.backbone.init_cfg = None
    model = build(cfg)
    optimizer = build_optimizer(model, cfg)
    rates = [group['lr'] for group in optimizer.param_groups]
    assert max(rates) == 2e-4
    assert min(rates) == pytest.approx(2e-4 * 0.95**31)


@pytest.mark.parametrize('decay_rate', [None, 0.0, 1.5])
def test_layer_decay_refuses_a_rate_out_of_range(decay_rate):
    model = nn.Module()
    model.backbone = OverLoCK(TINY)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
        constructor='OverLoCKLayerDecayConstructor',
        paramwise_cfg=dict(decay_rate=decay_rate),
    )
    with pytest.raises(ValueError, match=r'decay_rate must be in \(0, 1\]'):
        build_optim_wrapper(model, cfg)


def test_layer_decay_refuses_another_backbone():
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
        constructor='OverLoCKLayerDecayConstructor',
        paramwise_cfg=dict(decay_rate=0.9),
    )
    with pytest.raises(ValueError, match='`backbone` is an OverLoCK, got NoneType'):
        build_optim_wrapper(torch.nn.Linear(2, 2), cfg)
