"""Fixtures that need OpenMMLab: a very small data set, models on it, and a fresh process state.

And which of the two OpenMMLab stacks this is. ``conftest.py`` leaves them out where mmengine is not
installed, as the operators and their tests need only torch.
"""

import os
from importlib import metadata
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.visualization import Visualizer

from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO, write_shapes
from overlock_mm.utils.config import load_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fresh_globals_of_mmengine():
    """Each test starts without a default scope, a current visualizer and loggers."""
    forget_globals_of_mmengine()


@pytest.fixture(autouse=True)
def tools_leave_no_trace():
    """Undo what a tool sets for its process; here a process is many tests."""
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes)),
    ):
        yield


def forget_globals_of_mmengine():
    """Let the next run be as if it were the first of its process.

    A run's logger is named by the second in which it starts: two tests within one second would
    share it, and the second would write to the captured streams of the first.
    """
    for owner in (DefaultScope, MMLogger, *_with_subclasses(Visualizer)):
        owner._instance_dict.clear()


def _with_subclasses(owner):
    """Each has instances of its own, which would write to the folder of an earlier run."""
    yield owner
    for subclass in owner.__subclasses__():
        yield from _with_subclasses(subclass)


def maintained_stack():
    """Whether mmengine is the maintained distribution, and not the original."""
    return any(found.name == 'onedl-mmengine' for found in metadata.distributions())


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    """Folder with the COCO view of four training and two validation pictures."""
    root = tmp_path_factory.mktemp('shapes') / 'data'
    write_shapes(root, num_train=4, num_val=2)
    return root / 'coco'


@pytest.fixture(scope='session')
def tiny_run(shapes_root):
    """``--cfg-options`` for the demo config: two iterations an epoch, one epoch."""
    return [
        '--cfg-options',
        f'data_root={shapes_root}',
        'train_dataloader.batch_size=2',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
        # An untrained detector is sure of nothing, and pasting a hundred masks takes seconds.
        'model.test_cfg.rcnn.score_thr=0.0',
        'model.test_cfg.rcnn.max_per_img=5',
    ]


# One demo config per task, cut down once more: few detections, as an untrained detector is sure of
# nothing and every mask takes time.
_UNTRAINED = {
    'detection': ('cascade', METAINFO, 'model = dict(test_cfg=dict(rcnn=dict(max_per_img=5)))'),
    'segmentation': ('upernet', SEMANTIC_METAINFO, ''),
    'classification': ('classifier', METAINFO, ''),
}


@pytest.fixture(scope='session')
def untrained(tmp_path_factory):
    """Paths of a task's config and of a checkpoint that holds its initial weights and classes."""
    made = {}

    def make(task):
        if task not in made:
            name, metainfo, changes = _UNTRAINED[task]
            folder = tmp_path_factory.mktemp(task)
            config = folder / f'{name}_small.py'
            config.write_text(
                f"_base_ = '{ROOT}/configs/demo/{name}_overlock_shapes.py'\n{changes}\n"
            )
            cfg = load_config(config)
            torch.manual_seed(0)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = MODELS.build(cfg.model)
            meta = {'dataset_meta': {key: metainfo[key] for key in ('classes', 'palette')}}
            torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'weights.pth')
            made[task] = str(config), str(folder / 'weights.pth')
        return made[task]

    return make


_FIVE_BANDS = """
model = dict(
    backbone=dict(in_channels=5),
    # The libraries' own normalisation takes one or three channels.
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
)
test_pipeline = _base_.test_pipeline
test_pipeline[0].update(imdecode_backend='tifffile', color_type='unchanged')
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


@pytest.fixture(scope='session')
def of_five_bands(untrained, tmp_path_factory):
    """As ``untrained``, for pictures of five bands in TIFF files."""
    made = {}

    def make(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(f'{task}_of_five_bands')
            config = folder / 'bands.py'
            config.write_text(f"_base_ = '{untrained(task)[0]}'\n{_FIVE_BANDS}")
            cfg = load_config(config)
            torch.manual_seed(0)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = MODELS.build(cfg.model)
            torch.save({'state_dict': model.state_dict()}, folder / 'weights.pth')
            made[task] = str(config), str(folder / 'weights.pth')
        return made[task]

    return make


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """Folder with two small pictures of noise, of different sizes, and a text."""
    folder = tmp_path_factory.mktemp('pictures')
    generator = np.random.default_rng(0)
    for name, shape in {'a.png': (96, 120, 3), 'b.jpg': (100, 96, 3)}.items():
        cv2.imwrite(str(folder / name), generator.integers(0, 255, shape, dtype=np.uint8))
    (folder / 'notes.txt').write_text('not a picture')
    return folder
