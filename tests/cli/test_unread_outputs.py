"""A neck may leave out an output of the backbone in data-parallel training, too."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import distributed

from overlock_mm.cli.preflight import allow_unread_outputs
from tests.configs.conftest import CONFIGS, ROOT
from tests.test_heads import HEADS, TINY, _detection_data

RETINANET = next(head for head in HEADS if head.name == 'RetinaNet')


def _cfg(model, **settings):
    return Config(dict(model=model, launcher='pytorch') | settings)


def _segmentor(*indices):
    heads = [dict(in_index=index, in_channels=8) for index in indices]
    return dict(backbone=dict(type='OverLoCK'), decode_head=heads)


@pytest.mark.parametrize(
    ('cfg', 'allowed'),
    [
        (_cfg(dict(backbone=dict(type='OverLoCK'), neck=dict(start_level=1))), True),
        (_cfg(dict(backbone=dict(type='OverLoCK'), neck=dict(type='FPN'))), False),
        (_cfg(dict(backbone=dict(type='ResNet'), neck=dict(start_level=1))), False),
        (_cfg(_segmentor(2, -1)), True),
        (_cfg(_segmentor([0, 1], [2, 3])), False),
        (_cfg(_segmentor(2), launcher='none'), False),
        (_cfg(_segmentor(2), strategy=dict(type='BlockFSDPStrategy')), False),
    ],
)
def test_outputs_that_nothing_reads_are_allowed(cfg, allowed):
    allow_unread_outputs(cfg)
    assert cfg.get('find_unused_parameters', False) is allowed


def test_a_wrapper_of_ones_own_is_told():
    cfg = _cfg(_segmentor(2), model_wrapper_cfg=dict(type='MMDistributedDataParallel'))
    allow_unread_outputs(cfg)
    assert cfg.model_wrapper_cfg.find_unused_parameters is True


@pytest.mark.parametrize('name', [n for n in CONFIGS if n.startswith(('demo/', 'segm', 'det'))])
def test_no_shipped_config_leaves_an_output_out(name):
    cfg = Config.fromfile(ROOT / name)
    cfg.launcher = 'pytorch'
    allow_unread_outputs(cfg)
    assert 'find_unused_parameters' not in cfg


@pytest.mark.parametrize('allow', [True, False])
def test_retinanet_with_the_neck_of_its_base(allow, one_gloo_process, tmp_path):
    path = tmp_path / 'retinanet.py'
    path.write_text(RETINANET.config(TINY))
    cfg = Config.fromfile(path)
    cfg.model.backbone.out_indices = (0, 1, 2, 3)
    cfg.model.neck.update(in_channels=[16, 16, 40, 40], start_level=1)
    cfg.launcher = 'pytorch'
    if allow:
        allow_unread_outputs(cfg)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    model.init_weights()
    distributed.init_process_group('gloo')
    wrapped = MMDistributedDataParallel(
        model, find_unused_parameters=cfg.get('find_unused_parameters', False)
    )
    optim_wrapper = build_optim_wrapper(wrapped, cfg.optim_wrapper)
    data = _detection_data(RETINANET)
    wrapped.train_step(data, optim_wrapper)
    if allow:
        losses = wrapped.train_step(data, optim_wrapper)
        assert torch.isfinite(losses['loss'])
    else:
        with pytest.raises(RuntimeError, match='find_unused_parameters'):
            wrapped.train_step(data, optim_wrapper)
