"""RTMDet and Mask2Former: what they have of the libraries' recipes, and that the rest fits them."""

import numpy as np
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope

from overlock_mm import OverLoCK
from overlock_mm.datasets.shapes import write_shapes
from tests.models.helpers import TINY

LIBRARY = {
    'rtmdet_ins': 'rtmdet/rtmdet-ins_l_8xb32-300e_coco.py',
    'mask2former_ins': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
# What depends on the backbone.
OTHER = ('in_channels', '_scope_')
# Values that the library's layers have by default.
DEFAULTS = ('attn_drop', 'proj_drop', 'dropout', 'dropout_layer', 'add_identity')


@pytest.fixture(params=LIBRARY)
def recipe(request, load, tmp_path):
    """The config of ours and that of mmdet."""
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = 'mmdet::{LIBRARY[request.param]}'")
    return load(f'detection/{request.param}_overlock_t.py'), Config.fromfile(child)


def plain(node):
    """Settings without those that may differ, and without the scope of a type."""
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items() if k not in (*OTHER, *DEFAULTS)}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return node.removeprefix('mmdet.') if isinstance(node, str) else node


def test_all_but_the_backbone_is_that_of_the_library(recipe):
    ours, theirs = recipe
    for part in ('neck', 'bbox_head', 'panoptic_head', 'panoptic_fusion_head', 'train_cfg'):
        assert plain(ours.model.get(part)) == plain(theirs.model.get(part)), part
    assert plain(ours.model.test_cfg) == plain(theirs.model.test_cfg)
    for name in ('train_pipeline', 'train_pipeline_stage2', 'test_pipeline'):
        expected = plain(theirs.get(name) or [])
        for step in expected:  # a loader that leaves the pixels 8 bits wide
            step.pop('to_float32', None)
            if name == 'test_pipeline' and step['type'] == 'LoadAnnotations':
                step['with_mask'] = True
        assert plain(ours.get(name) or []) == expected, name


def test_samples_leave_the_pipeline_with_their_masks(load, tmp_path):
    """With masks that are not polygons, RTMDet's pipeline would ignore every object."""
    write_shapes(tmp_path, num_train=2, num_val=1)
    cfg = load('detection/rtmdet_ins_overlock_t.py')
    cfg.train_pipeline[1].poly2mask = cfg.train_pipeline_stage2[1].poly2mask = True
    dataset = dict(cfg.train_dataloader.dataset, data_root=str(tmp_path / 'coco'))
    dataset['metainfo'] = dict(classes=('ellipse', 'rectangle', 'ring', 'star', 'triangle'))
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        for pipeline in (cfg.train_pipeline, cfg.train_pipeline_stage2):
            built = DATASETS.build(dict(dataset, pipeline=[]))
            built.pipeline = Compose(pipeline)
            sample = built[0]
            instances = sample['data_samples'].gt_instances
            assert sample['inputs'].shape == (3, 640, 640)
            assert len(instances.masks) == len(instances.bboxes) > 0


@pytest.mark.slow
@pytest.mark.parametrize('name', LIBRARY)
def test_a_step_and_a_prediction_with_augmentation(name, load):
    cfg = load(f'detection/{name}_overlock_t.py')
    widths = OverLoCK(TINY).out_channels
    cfg.model.backbone.update(arch=TINY, init_cfg=None)
    if name == 'rtmdet_ins':
        cfg.model.neck.in_channels = list(widths[1:])
        cfg.model.test_cfg.update(score_thr=0.0, max_per_img=3)
    else:
        cfg.model.data_preprocessor.batch_augments[0].size = (64, 64)
        head = cfg.model.panoptic_head
        head.update(in_channels=list(widths), num_queries=5)
        head.transformer_decoder.num_layers = head.pixel_decoder.encoder.num_layers = 1
        cfg.model.train_cfg.num_points = 64
        cfg.model.test_cfg.max_per_image = 3
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        data = demo_mm_inputs(
            2, [(3, 64, 64)] * 2, num_items=[2, 3], num_classes=80, with_mask=True
        )
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        total, _ = model.parse_losses(losses)
        total.backward()
        assert torch.isfinite(total)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

        augmented = MODELS.build(dict(cfg.tta_model, module=model.eval()))
        inputs = [[image, image] for image in data['inputs']]
        samples = [[sample.clone(), sample.clone()] for sample in data['data_samples']]
        for plain_view, mirrored in samples:
            plain_view.set_metainfo(dict(flip_direction=None))
            mirrored.set_metainfo(dict(flip_direction='horizontal'))
        with torch.no_grad():
            predicted = augmented.test_step(dict(inputs=inputs, data_samples=samples))
    assert all(len(sample.pred_instances.masks) > 0 for sample in predicted)
