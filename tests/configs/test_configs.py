"""Every shipped config loads, builds and fits together."""

import pytest
from mmengine.config import Config

from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO
from overlock_mm.models import ARCHS, OverLoCKArch
from tests.configs.conftest import CONFIGS, ROOT, build_optimizer


@pytest.fixture(params=CONFIGS)
def cfg(request, load):
    return load(request.param)


# Children of other variants only add numbers, and formatting one takes seconds.
@pytest.mark.parametrize(
    'name',
    [
        *(name for name in CONFIGS if name.startswith('demo/')),
        'detection/cascade_overlock_t.py',
        'detection/mask_rcnn_overlock_t_1x.py',
        'segmentation/upernet_overlock_t.py',
        'classification/overlock_b_deploy.py',
    ],
)
def test_config_survives_a_dump(name, load, tmp_path):
    cfg = load(name)
    path = tmp_path / 'dumped.py'
    cfg.dump(path)
    assert Config.fromfile(path).to_dict() == cfg.to_dict()


def test_model_builds_and_its_parts_fit(cfg, build):
    model = build(cfg)
    widths = list(model.backbone.out_channels)
    readers = [cfg.model.get(name) for name in ('neck', 'panoptic_head', 'decode_head', 'head')]
    first = next(reader for reader in readers if reader)
    assert list(first.in_channels) == widths
    auxiliary = cfg.model.get('auxiliary_head')
    assert auxiliary is None or auxiliary.in_channels == widths[auxiliary.in_index]
    optimizer = build_optimizer(model, cfg)
    optimized = [p for group in optimizer.param_groups for p in group['params']]
    # Those of the fused form are constants.
    assert len(optimized) == sum(p.requires_grad for p in model.parameters()) > 0


def test_weights_start_from_the_variant_of_the_config(cfg):
    backbone = cfg.model.backbone
    from_scratch = isinstance(backbone.arch, dict) or cfg.default_scope == 'mmpretrain'
    if from_scratch or backbone.get('deploy'):
        assert backbone.get('init_cfg') is None
    else:
        assert backbone.init_cfg.checkpoint.endswith(f'/overlock_{backbone.arch}_in1k_224.pth')


def test_test_and_validation_read_the_same_data(cfg):
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    assert cfg.test_dataloader.dataset.pipeline == cfg.test_pipeline
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    if cfg.default_scope == 'mmdet':
        dataset = cfg.test_dataloader.dataset
        assert cfg.test_evaluator.ann_file == dataset.data_root + dataset.ann_file


def test_every_config_can_be_tested_with_augmentation(cfg):
    assert cfg.tta_model.type
    (augment,) = (step for step in cfg.tta_pipeline if step.type == 'TestTimeAug')
    assert sum(step.type == 'RandomFlip' for part in augment.transforms for step in part) == 2


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.endswith('_deploy.py')])
def test_deploy_differs_from_its_parent_in_form_alone(name, load):
    deploy = load(name).to_dict()
    parent = f'{ROOT / name}'.removesuffix('_deploy.py')
    cfg = load(f'{parent}.py' if 'mask_rcnn' not in name else f'{parent}_1x.py').to_dict()
    for config in (deploy, cfg):
        config['model']['backbone'].pop('init_cfg', None)
    assert deploy['model']['backbone'].pop('deploy') is True
    if 'classification' in name:
        assert deploy['model']['head'].pop('auxiliary') is False
    assert deploy == cfg


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.endswith('_boxes_only.py')])
def test_boxes_only_differs_from_its_parent_by_the_masks(name, load):
    boxes = load(name).to_dict()
    parent = load(name.replace('_boxes_only', '')).to_dict()
    assert boxes['model']['roi_head'].pop('mask_head') is None
    assert boxes['model']['roi_head'].pop('mask_roi_extractor') is None
    for part in ('mask_head', 'mask_roi_extractor'):
        del parent['model']['roi_head'][part]
    for split in ('val', 'test'):
        assert boxes[f'{split}_evaluator']['metric'] == ['bbox']
        parent[f'{split}_evaluator']['metric'] = ['bbox']
        parent[f'{split}_dataloader']['dataset']['pipeline'][2]['with_mask'] = False
    parent['test_pipeline'][2]['with_mask'] = False
    parent['train_pipeline'][1]['with_mask'] = False
    parent['train_dataloader']['dataset']['pipeline'][1]['with_mask'] = False
    assert boxes == parent


@pytest.mark.parametrize(
    ('demo', 'parent'),
    [
        ('cascade_overlock_shapes', 'detection/cascade_overlock_s'),
        ('upernet_overlock_shapes', 'segmentation/upernet_overlock_s'),
        ('classifier_overlock_shapes', 'classification/overlock_s'),
    ],
)
def test_a_demo_is_its_parent_with_fewer_of_everything(demo, parent, load):
    demo, real = load(f'demo/{demo}.py'), load(f'{parent}.py')
    assert _types(demo.model) == _types(real.model)
    assert demo.optim_wrapper.optimizer.type == real.optim_wrapper.optimizer.type
    # A classifier's second metric is of its second head.
    evaluators = demo.test_evaluator
    first = evaluators[0] if isinstance(evaluators, list) else evaluators
    assert first.type == real.test_evaluator.type
    classes = (SEMANTIC_METAINFO if demo.default_scope == 'mmseg' else METAINFO)['classes']
    assert demo.test_dataloader.dataset.metainfo.classes == classes
    assert set(_values(demo.model, 'num_classes')) == {len(classes)}


def test_demo_cascade_keeps_the_thresholds_and_targets(load):
    demo, real = load('demo/cascade_overlock_shapes.py'), load('detection/cascade_overlock_s.py')
    for ours, published in zip(
        demo.model.roi_head.bbox_head, real.model.roi_head.bbox_head, strict=True
    ):
        assert ours.bbox_coder == published.bbox_coder
        assert ours.loss_bbox == published.loss_bbox
    for ours, published in zip(demo.model.train_cfg.rcnn, real.model.train_cfg.rcnn, strict=True):
        assert ours.assigner == published.assigner


def _types(model):
    """The types of a model's own parts."""
    return {
        key: part['type']
        for key, part in model.items()
        if isinstance(part, dict) and 'type' in part
    } | {'model': model.type}


def _values(node, name):
    """Every value of a key in nested dicts and lists."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == name:
            yield value
        elif isinstance(value, (dict, list)):
            yield from _values(value, name)


def test_table_of_variants_is_that_of_the_network():
    table = Config.fromfile(ROOT / '_base_/variants.py').variants
    assert list(table) == list(ARCHS)
    for name, arch in ARCHS.items():
        assert_widths(table[name], arch)


def test_widths_of_the_demo_are_those_of_its_network():
    variant = Config.fromfile(ROOT / '_base_/shapes_variant.py').shapes_variant
    assert_widths(variant, OverLoCKArch.from_spec(variant.arch))


def assert_widths(variant, arch):
    assert variant.pyramid_channels == list(arch.pyramid_channels)
    assert variant.classifier_channels == [arch.pyramid_channels[3], arch.channels[3]]
