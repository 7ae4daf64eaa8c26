"""Data that the libraries train on, for the tests that no check refuses them."""

from mmengine.config import Config
from mmengine.registry import DefaultScope

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import watch_files
from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO

LOAD = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]


LOAD_MAPS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def check(scope, dataset, split='train', evaluator=None, **model):
    """The lines of the report on one data set, every sample of which then leaves its pipeline."""
    cfg = dict(default_scope=scope, model=dict(type='Model', **model))
    cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    if evaluator is not None:
        cfg[f'{split}_evaluator'] = evaluator
    cfg = Config(cfg)
    sets = check_data(cfg, (split,))
    built = sets.get(cfg[f'{split}_dataloader'].dataset)
    watch_files(built)
    with DefaultScope.overwrite_default_scope(scope):
        assert all('inputs' in built[index] for index in range(len(built)))
    return sets.lines


def shapes(root, **settings):
    return dict(
        dict(
            type='CocoDataset',
            data_root=str(root),
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            metainfo=METAINFO,
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=LOAD,
        ),
        **settings,
    )


def maps(root, **settings):
    return dict(
        dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            img_suffix='.png',
            metainfo=SEMANTIC_METAINFO,
            reduce_zero_label=True,
            pipeline=LOAD_MAPS,
        ),
        **settings,
    )
