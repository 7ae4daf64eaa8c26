"""``load_config``: near names, and a data root that reaches every path. The TensorBoard switch."""

import argparse

import pytest

from overlock_mm.cli.arguments import add_common_arguments, load_run_config
from overlock_mm.utils.config import load_config
from tests.conftest import DEMO, ROOT


def test_data_root_moves_every_path():
    cfg = load_config(DEMO, {'data_root': '/elsewhere'})
    assert 'data/shapes' not in cfg.pretty_text
    for split, name in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017')):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root == '/elsewhere/'
        assert dataset.ann_file == f'annotations/instances_{name}.json'
    assert cfg.val_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'
    assert cfg.test_evaluator == cfg.val_evaluator


def test_a_setting_beside_data_root_has_the_last_word():
    cfg = load_config(
        DEMO, {'test_evaluator.ann_file': 'data/shapes/coco/mine.json', 'data_root': '/elsewhere/'}
    )
    assert cfg.test_evaluator.ann_file == 'data/shapes/coco/mine.json'
    assert cfg.val_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'


def test_data_root_moves_no_lookalike(tmp_path):
    config = tmp_path / 'own.py'
    config.write_text("data_root = 'data/coco'\npaths = ['data/coco/a', 'data/coco2/a', 'data']\n")
    assert load_config(config, {'data_root': 'x'}).paths == ['x/a', 'data/coco2/a', 'data']


def test_data_root_without_one_to_replace(tmp_path):
    config = tmp_path / 'own.py'
    config.write_text('model = dict()\n')
    with pytest.raises(ValueError, match='needs a config with a top-level `data_root`'):
        load_config(config, {'data_root': 'x'})


@pytest.mark.parametrize(
    'wrong',
    ['configs/detection/cascade_overlok_s.py', 'configs/cascade_overlock_s.py', 'cascade_s.py'],
)
def test_missing_config_names_near_ones(wrong):
    with pytest.raises(FileNotFoundError, match='configs/detection/cascade_overlock_s.py'):
        load_config(wrong)


def test_missing_config_without_near_ones_lists_all():
    with pytest.raises(FileNotFoundError) as error:
        load_config('zzz.py')
    assert 'configs/demo/cascade_overlock_shapes.py' in str(error.value)
    assert '_base_' not in str(error.value)


def run_config(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    return load_run_config(parser.parse_args(list(options)))


@pytest.mark.parametrize('task', ['cascade', 'upernet', 'classifier'])
def test_the_tensorboard_switch(task):
    config = str(ROOT / f'configs/demo/{task}_overlock_shapes.py')
    local = dict(type='LocalVisBackend')
    assert run_config(config).visualizer.vis_backends == [local]
    switched = run_config(config, '--cfg-options', 'tensorboard=True')
    assert switched.visualizer.vis_backends == [local, dict(type='TensorboardVisBackend')]


def test_a_config_may_switch_tensorboard_on_by_itself(tmp_path):
    config = tmp_path / 'own.py'
    # With a backend of its own, which is not doubled.
    config.write_text(
        f'_base_ = {DEMO!r}\ntensorboard = True\n'
        "visualizer = dict(vis_backends=[dict(type='TensorboardVisBackend', save_dir='runs')])\n"
    )
    backend = dict(type='TensorboardVisBackend', save_dir='runs')
    assert run_config(str(config)).visualizer.vis_backends == [backend]


def test_tensorboard_that_is_not_installed_is_told_at_once(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install tensorboard'):
        run_config(DEMO, '--cfg-options', 'tensorboard=True')


def test_a_checkpoint_is_no_config(tmp_path):
    (tmp_path / 'weights.pth').write_bytes(b'')
    with pytest.raises(ValueError, match=r"weights\.pth' is not a config file.*comes first"):
        load_config(tmp_path / 'weights.pth')
