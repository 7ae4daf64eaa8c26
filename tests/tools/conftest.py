"""A very small data set and the settings that make a run on it take seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from overlock_mm.datasets.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / 'configs/demo/cascade_overlock_shapes.py')


@pytest.fixture(autouse=True)
def tools_leave_no_trace(monkeypatch):
    """Undo what a tool sets for its process; here a process is many tests."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')


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
            timeout=300,
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
