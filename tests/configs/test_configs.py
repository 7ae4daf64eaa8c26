"""Every shipped config loads, builds and fits together."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from overlock_mm.datasets.shapes import METAINFO
from overlock_mm.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*.py') if '_base_' not in path.parts
)


@pytest.fixture(params=CONFIGS)
def cfg(request):
    cfg = load_config(ROOT / request.param)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield cfg


def test_config_survives_a_dump(cfg, tmp_path):
    path = tmp_path / 'dumped.py'
    cfg.dump(path)
    assert Config.fromfile(path).to_dict() == cfg.to_dict()


def test_model_builds_and_its_parts_fit(cfg, monkeypatch):
    def refuse(url, *args, **kwargs):
        raise AssertionError(f'building a model downloads {url}')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    model = MODELS.build(cfg.model)
    assert list(model.backbone.out_channels) == list(cfg.model.neck.in_channels)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    optimized = [p for group in optimizer.param_groups for p in group['params']]
    assert len(optimized) == len(list(model.parameters()))


def test_weights_start_from_the_variant_of_the_config(cfg):
    backbone = cfg.model.backbone
    if isinstance(backbone.arch, dict):
        assert backbone.init_cfg is None
    else:
        assert backbone.init_cfg.checkpoint.endswith(f'/overlock_{backbone.arch}_in1k_224.pth')


def test_test_and_validation_read_the_same_data(cfg):
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    dataset = cfg.test_dataloader.dataset
    assert cfg.test_evaluator.ann_file == dataset.data_root + dataset.ann_file


# Drop path and widths from the authors' release; the rest is the recipe that its peers share.
@pytest.mark.parametrize(
    ('variant', 'drop_path', 'widths'),
    [('t', 0.2, [64, 128, 384, 640]), ('s', 0.4, [64, 128, 448, 640])],
)
def test_cascade_follows_the_published_recipe(variant, drop_path, widths):
    cfg = load_config(ROOT / f'detection/cascade_overlock_{variant}.py')
    assert cfg.model.backbone.arch == variant
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.backbone.context_residual
    assert cfg.model.neck.in_channels == widths
    assert [head.bbox_coder.target_stds[0] for head in cfg.model.roi_head.bbox_head] == [
        0.1,
        0.05,
        0.033,
    ]
    for head in cfg.model.roi_head.bbox_head:
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert (head.loss_bbox.type, head.reg_decoded_bbox) == ('GIoULoss', True)

    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert 'paramwise_cfg' not in cfg.optim_wrapper  # everything is decayed, as published
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (1e-3, 500, False)
    assert (steps.milestones, steps.gamma, cfg.train_cfg.max_epochs) == ([27, 33], 0.1, 36)
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_size == 2
    (resize,) = (step for step in cfg.test_pipeline if step.type == 'Resize')
    assert resize.scale == (1333, 800)


def test_demo_is_the_cascade_with_fewer_of_everything():
    demo = load_config(ROOT / 'demo/cascade_overlock_shapes.py')
    real = load_config(ROOT / 'detection/cascade_overlock_s.py')
    assert demo.model.type == real.model.type
    for ours, published in zip(
        demo.model.roi_head.bbox_head, real.model.roi_head.bbox_head, strict=True
    ):
        assert ours.bbox_coder == published.bbox_coder
        assert ours.loss_bbox == published.loss_bbox
    for ours, published in zip(demo.model.train_cfg.rcnn, real.model.train_cfg.rcnn, strict=True):
        assert ours.assigner == published.assigner
    classes = METAINFO['classes']
    assert demo.test_dataloader.dataset.metainfo.classes == classes
    heads = [*demo.model.roi_head.bbox_head, demo.model.roi_head.mask_head]
    assert {head.num_classes for head in heads} == {len(classes)}
