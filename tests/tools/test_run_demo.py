"""The demo's own steps, with two iterations of training."""

from dataclasses import replace

import pytest

from tests.tools.conftest import ROOT
from tools import run_demo

SHORT = {
    'segmentation': 'train_cfg = dict(max_iters=2, val_interval=2)\n'
    'default_hooks = dict(checkpoint=dict(interval=2))',
    'classification': 'train_cfg = dict(max_epochs=1, val_interval=1)',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', SHORT)
def test_a_task_is_drawn_trained_and_tested(name, tmp_path):
    task = run_demo.TASKS[name]
    config = tmp_path / 'short.py'
    config.write_text(f'_base_ = {str(ROOT / task.config)!r}\n{SHORT[name]}\n')
    task = replace(task, config=str(config), num_train=16, num_val=5)
    figures = run_demo.run_task(task, tmp_path / 'demo')
    assert set(figures['metrics']) == {metric.key for metric in task.metrics}
    for metric in figures['metrics'].values():
        assert 0 <= metric['untrained'] <= 100 and 0 <= metric['trained'] <= 100
    assert len(list((tmp_path / 'demo' / name / 'pictures').rglob('*.png'))) == 5
    assert run_demo.missed(task, figures) == []


def test_what_falls_short_is_told():
    task = run_demo.TASKS['detection']
    figures = {'metrics': {m.key: {'trained': 0.78} for m in task.metrics}}
    assert run_demo.missed(task, figures) == ['box AP50 is 0.780 and should be at least 0.80.']


@pytest.mark.parametrize(
    ('line', 'shown'),
    [
        (
            'INFO - Epoch(train)  [2][ 50/100]  lr: 1e-3  eta: 0:01:02  time: 0.1  loss: 1.2345',
            'epoch 2, step 50 of 100: loss 1.23, 0:01:02 to go',
        ),
        (
            'INFO - Iter(train) [ 50/800]  lr: 1e-3  eta: 0:01:02  time: 0.1  loss: 1.2345',
            'step 50 of 800: loss 1.23, 0:01:02 to go',
        ),
        ('INFO - Epoch(train)  [2][ 40/100]  lr: 1e-3  eta: 0:01:02  loss: 1.2345', None),
        ('INFO - Epoch(val) [2][50/100]  eta: 0:00:01', None),
    ],
)
def test_progress(line, shown):
    assert run_demo.training_progress(line) == shown
