"""Detectors with queries keep no more results of an image than there are."""

import pytest
from mmengine.config import ConfigDict

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.queries import check_kept_results
from overlock_mm.heads import HEADS
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT

FOCAL = dict(type='FocalLoss')
SOFTMAX = dict(type='CrossEntropyLoss', use_sigmoid=False)


def detr(queries, limit, classes=5, loss=FOCAL, **settings):
    head = dict(num_classes=classes, loss_cls=loss)
    return dict(settings, num_queries=queries, bbox_head=head, test_cfg=dict(max_per_img=limit))


def mask2former(queries, classes=5, **test_cfg):
    return dict(
        panoptic_head=dict(num_queries=queries),
        panoptic_fusion_head=dict(num_things_classes=classes, num_stuff_classes=0),
        test_cfg=test_cfg,
    )


def sparse(queries, limit, classes=5):
    return dict(
        rpn_head=dict(num_proposals=queries),
        roi_head=dict(bbox_head=[dict(num_classes=classes)] * 2),
        test_cfg=dict(rpn=None, rcnn=dict(max_per_img=limit)),
    )


ENOUGH = {
    'a result for each class': detr(20, 100),
    'classes that exclude each other': detr(100, 100, loss=SOFTMAX),
    'no limit': detr(20, None),
    'words': detr(20, 101, language_model={}),
    'masks': mask2former(20, instance_on=True),
    'no instances': mask2former(2, panoptic_on=True),
    'proposals': sparse(20, 100),
    'no queries': dict(bbox_head=dict(num_classes=5), test_cfg=dict(max_per_img=300)),
}
TOO_FEW = {
    'a result for each class': (detr(20, 101), 'model.test_cfg.max_per_img=100'),
    'classes that exclude each other': (
        detr(20, 100, loss=SOFTMAX),
        'model.test_cfg.max_per_img=20',
    ),
    'masks': (mask2former(10, instance_on=True), 'model.test_cfg.max_per_image=50'),
    'below augmentation': (
        dict(module=mask2former(10, instance_on=True, max_per_image=51)),
        'model.test_cfg.max_per_image=50',
    ),
    'proposals': (sparse(99, 100, 1), 'model.test_cfg.rcnn.max_per_img=99'),
}


@pytest.mark.parametrize('case', ENOUGH)
def test_enough_results(case):
    check_kept_results(ConfigDict(ENOUGH[case]))


@pytest.mark.parametrize('case', TOO_FEW)
def test_fewer_results_than_are_kept(case):
    model, option = TOO_FEW[case]
    with pytest.raises(DataError) as caught:
        check_kept_results(ConfigDict(model))
    assert f'Set --cfg-options {option},' in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'setting'),
    [
        ('DETR', 'num_queries'),
        ('Deformable DETR', 'num_queries'),
        ('DINO', 'num_queries'),
        ('Sparse R-CNN', 'rpn_head.num_proposals'),
        ('Mask2Former (instances)', 'panoptic_head.num_queries'),
    ],
)
def test_configs_of_the_library(name, setting, tmp_path):
    (head,) = (head for head in HEADS if head.name == name)
    (tmp_path / 'config.py').write_text(head.config())
    cfg = load_config(tmp_path / 'config.py')
    check_kept_results(cfg.model)
    cfg.merge_from_dict({f'model.{setting}': 1})
    with pytest.raises(DataError, match=rf'1 queries \(model\.{setting}\)'):
        check_kept_results(cfg.model)


def test_it_is_asked_before_a_run(shapes_root):
    config = ROOT / 'configs/detection/mask2former_ins_overlock_t.py'
    options = dict(data_root=str(shapes_root), **{'model.panoptic_head.num_queries': 1})
    with pytest.raises(DataError) as caught:
        check_data(load_config(config, options), ('val',))
    # Beside what is wrong with the classes.
    assert ['max_per_image=80, or more' in m for m in caught.value.messages] == [True, False]
