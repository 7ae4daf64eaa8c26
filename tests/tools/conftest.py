"""A very small data set and the settings that make a run on it take seconds."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import distributed

from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO, write_shapes
from overlock_mm.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / 'configs/demo/cascade_overlock_shapes.py')


@pytest.fixture(autouse=True)
def tools_leave_no_trace(monkeypatch):
    """Undo what a tool sets for its process; here a process is many tests."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))


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


@pytest.fixture(scope='session')
def run_python():
    """Run a Python command line of the project in a process of its own, with one thread."""

    def run(*arguments, **kwargs):
        environment = os.environ | {
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
            'OMP_NUM_THREADS': '1',
        }
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            **kwargs,
        )

    return run


@pytest.fixture
def one_gloo_process(monkeypatch):
    """The environment of one process, as torchrun would start it; any free port will do."""
    settings = {'RANK': 0, 'WORLD_SIZE': 1, 'MASTER_ADDR': 'localhost', 'MASTER_PORT': 0}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


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


@pytest.fixture
def fails(capsys):
    """Run a tool's main and return its error message."""

    def run(main, *arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 1
        message = capsys.readouterr().err
        assert message.startswith('error: '), message
        return message

    return run


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """Folder with two small pictures of noise, of different sizes, and a text."""
    folder = tmp_path_factory.mktemp('pictures')
    generator = np.random.default_rng(0)
    for name, shape in {'a.png': (96, 120, 3), 'b.jpg': (100, 96, 3)}.items():
        cv2.imwrite(str(folder / name), generator.integers(0, 255, shape, dtype=np.uint8))
    (folder / 'notes.txt').write_text('of no concern')
    return folder
