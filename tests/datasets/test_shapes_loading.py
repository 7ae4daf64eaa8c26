"""The loading code of mmdet, mmseg and mmpretrain reads the synthetic data set."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope

from overlock_mm.datasets import (
    METAINFO,
    SEMANTIC_METAINFO,
    draw_scene,
    scene_rng,
    write_classification,
    write_shapes,
)

SIZE = (64, 80)
SMALL = dict(num_train=4, num_val=2, image_size=SIZE, seed=3)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'set'
    write_shapes(root, **SMALL)
    return root


def test_mmdet_loads_boxes_and_masks(drawn):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    arguments = dict(
        data_root=str(drawn / 'coco'),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        metainfo=METAINFO,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = CocoDataset(**arguments)
    assert len(dataset) == SMALL['num_train']
    for index in range(len(dataset)):
        loaded = dataset[index]
        scene = draw_scene(scene_rng(SMALL['seed'], 'train', index), *SIZE)
        assert np.array_equal(loaded['img'][..., ::-1], scene.image)
        assert np.array_equal(loaded['gt_masks'].masks, scene.masks)
        assert np.array_equal(loaded['gt_bboxes'].tensor.numpy(), scene.boxes)
        assert np.array_equal(loaded['gt_bboxes_labels'], scene.labels)
        assert not loaded['gt_ignore_flags'].any()


def test_mmseg_loads_label_maps(drawn):
    # The class behind ADE20KDataset, which itself takes no classes but ADE20K's.
    from mmseg.datasets import BaseSegDataset
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    arguments = dict(
        data_root=str(drawn / 'ade'),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        img_suffix='.png',
        reduce_zero_label=True,
        metainfo=SEMANTIC_METAINFO,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = BaseSegDataset(**arguments)
    assert dataset.metainfo['classes'] == ('background', *METAINFO['classes'])
    assert len(dataset) == SMALL['num_val']
    for index in range(len(dataset)):
        loaded = dataset[index]
        scene = draw_scene(scene_rng(SMALL['seed'], 'val', index), *SIZE)
        assert np.array_equal(loaded['img'][..., ::-1], scene.image)
        expected = np.where(scene.semantic == 0, 255, scene.semantic.astype(int) - 1)
        assert np.array_equal(loaded['gt_seg_map'], expected)


def test_mmpretrain_loads_class_folders(tmp_path):
    from mmpretrain.datasets import CustomDataset

    write_classification(tmp_path / 'set', num_train=6, num_val=5, image_size=(64, 64))
    dataset = CustomDataset(data_root=str(tmp_path / 'set'), data_prefix='train', pipeline=[])
    assert tuple(dataset.metainfo['classes']) == METAINFO['classes']
    assert sorted(item['gt_label'] for item in dataset) == [0, 0, 1, 2, 3, 4]
