"""A project folder in which the pages' commands run as they are written, on tiny data."""

import os
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from overlock_mm.datasets.shapes import METAINFO, write_classification, write_shapes
from tests import official
from tests.docs.pages import ROOT

# Replacements for the real configs: children of the demo's, of one step, without validation.
DETECTION = f"""
_base_ = '{ROOT}/configs/demo/cascade_overlock_shapes.py'
train_cfg = dict(max_epochs=1, val_begin=2)
# An untrained detector is sure of nothing, and pasting a hundred masks takes seconds.
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)))
"""
SEGMENTATION = f"""
_base_ = '{ROOT}/configs/demo/upernet_overlock_shapes.py'
train_cfg = dict(max_iters=1, val_begin=2)
default_hooks = dict(checkpoint=dict(interval=1))
train_dataloader = dict(batch_size=2)
"""
CLASSIFICATION = f"""
_base_ = '{ROOT}/configs/demo/classifier_overlock_shapes.py'
train_cfg = dict(max_epochs=1, val_begin=2)
train_dataloader = dict(batch_size=5)
"""
# The real network, for the official file, on pictures of five of its thousand classes.
REAL_CLASSIFICATION = f"""
_base_ = '{ROOT}/configs/classification/overlock_xt.py'
dataset = dict(metainfo=dict(classes={METAINFO['classes']}))
test_dataloader = dict(batch_size=5, num_workers=0, persistent_workers=False, dataset=dataset)
"""
STAND_INS = {
    'detection/cascade_overlock_s.py': DETECTION,
    'segmentation/upernet_overlock_t.py': SEGMENTATION,
    'classification/overlock_xt.py': CLASSIFICATION,
}
# A file that the page's reader has, and for what it stands.
CHECKPOINTS = {
    'work_dirs/cascade_overlock_s/epoch_36.pth': 'detection/cascade_overlock_s.py',
    'work_dirs/upernet_overlock_t/iter_160000.pth': 'segmentation/upernet_overlock_t.py',
    'work_dirs/overlock_xt/epoch_310.pth': 'classification/overlock_xt.py',
    'work_dirs/demo/detection/epoch_5.pth': 'demo/cascade_overlock_shapes.py',
}
SRUN = f"""#!{sys.executable}
import json, sys
json.dump(sys.argv[1:], open('srun.json', 'w'))
"""


@pytest.fixture(scope='session')
def data_folders(tmp_path_factory):
    """Each folder that the pages name, and the tiny one in its place."""
    root = tmp_path_factory.mktemp('data')
    write_shapes(root / 'shapes', num_train=2, num_val=1)
    write_classification(root / 'classes', num_train=5, num_val=5)
    return {
        '/data/coco': str(root / 'shapes/coco'),
        '/data/ADEChallengeData2016': str(root / 'shapes/ade'),
        '/data/imagenet': str(root / 'classes'),
    }


@pytest.fixture
def project(preloaded_python, tmp_path, monkeypatch):
    """The folder, current, with tools, configs and a stand-in for srun."""
    folder = tmp_path / 'project'
    configs = folder / 'configs'
    configs.mkdir(parents=True)
    (folder / 'tools').symlink_to(ROOT / 'tools')
    (configs / '_base_').symlink_to(ROOT / 'configs/_base_')
    for source in (ROOT / 'configs').glob('[a-z]*/*.py'):
        link = configs / source.relative_to(ROOT / 'configs')
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(source)
    for source in (ROOT / 'configs/demo').glob('*.py'):
        # Not a link, from which the parents would be the stand-ins.
        put_config(folder, f'demo/{source.name}', f'_base_ = {str(source)!r}\n')
    for name, content in STAND_INS.items():
        put_config(folder, name, content)
    srun = tmp_path / 'bin/srun'
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv('PATH', f'{srun.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('PYTHON', preloaded_python)
    monkeypatch.setenv('PYTHON_EXEC', preloaded_python)  # what torchrun starts
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    python_path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    monkeypatch.setenv('PYTHONPATH', python_path)
    # Undone at the end, what the tools set for their process; here a process is many tests.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    return folder


@pytest.fixture
def trained(project):
    """The checkpoints of an earlier day's training, untrained."""
    for name, config in CHECKPOINTS.items():
        cfg = Config.fromfile(project / 'configs' / config)
        init_default_scope(cfg.default_scope)
        path = project / name
        path.parent.mkdir(parents=True)
        torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, path)


@pytest.fixture
def trained_and_pictures(trained, project):
    """And a picture of the reader's, as a file and in a folder."""
    (project / 'pictures').mkdir()
    for path in (project / 'picture.jpg', project / 'pictures/one.png'):
        Image.effect_noise((360, 240), 60).convert('RGB').save(path)


@pytest.fixture
def released(project):
    """An official file, rebuilt, and the config that it belongs to."""
    weights = official.official_state_dict('cls', 'xt', 'training')
    weights = {k: v if k.endswith('tracked') else v.float() for k, v in weights.items()}
    torch.save({'state_dict': weights}, project / 'overlock_xt_in1k_224.pth')
    put_config(project, 'classification/overlock_xt.py', REAL_CLASSIFICATION)


@pytest.fixture
def all_of_it(trained_and_pictures, released):
    """What the readers of all pages have."""


def put_config(project, name, content):
    path = project / 'configs' / name
    path.unlink(missing_ok=True)
    path.write_text(content)
