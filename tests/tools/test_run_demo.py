"""The parts of the demo that its own run does not show to be right."""

from dataclasses import replace

import pytest
import torch

from overlock_mm.checkpoint import check_compatible, read_checkpoint
from tests.conftest import ROOT
from tools.dev import run_demo

DETECTION = run_demo.TASKS['detection']
SHORT = {
    'segmentation': 'train_cfg = dict(max_iters=2, val_interval=2)\n'
    'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))',
    'classification': 'train_cfg = dict(max_epochs=1, val_interval=1)',
}
LINE = (
    '11/20 09:12:32 - mmengine - INFO - Epoch(train) [2][{step}/200]  lr: 5.9e-04  eta: 0:09:42  '
    'time: 1.02  data_time: 0.01  grad_norm: 9.8  loss: 4.0251  loss_rpn_cls: 0.5874'
)


def test_progress_is_told_every_fifty_steps():
    expected = 'epoch 2, step 150 of 200: loss 4.03, 0:09:42 to go'
    assert run_demo.training_progress(LINE.format(step='150')) == expected
    assert run_demo.training_progress(LINE.format(step=' 10')) is None
    assert run_demo.training_progress('loading annotations into memory...') is None
    # A run that only counts iterations.
    line = LINE.format(step='150').replace('Epoch(train) [2]', 'Iter(train) ')
    assert run_demo.training_progress(line) == expected.removeprefix('epoch 2, ')


def figures(box, mask):
    values = dict(zip((m.key for m in DETECTION.metrics), (0, box, 0, mask), strict=True))
    return {'metrics': {key: {'untrained': 0.0, 'trained': v} for key, v in values.items()}}


def test_a_figure_below_its_minimum_is_named():
    assert run_demo.missed(DETECTION, figures(0.70, 0.65)) == []
    assert run_demo.missed(DETECTION, figures(0.69, 0.65)) == [
        'box AP50 is 0.690 and should be at least 0.70.'
    ]


def test_the_untrained_checkpoint_is_that_of_the_demo_config(tmp_path):
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    config = ROOT / DETECTION.config
    run_demo.save_untrained(config, tmp_path / 'untrained.pth')
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    state_dict = read_checkpoint(tmp_path / 'untrained.pth')['state_dict']
    check_compatible(MODELS.build(cfg.model), state_dict)
    assert all(value.isfinite().all() for value in state_dict.values())
    torch.manual_seed(1)
    run_demo.save_untrained(config, tmp_path / 'again.pth')
    again = read_checkpoint(tmp_path / 'again.pth')['state_dict']
    assert all(torch.equal(value, again[name]) for name, value in state_dict.items())


@pytest.mark.slow
def test_a_failing_tool_shows_the_end_of_its_output(preloaded_python, monkeypatch, tmp_path):
    monkeypatch.setattr('sys.executable', preloaded_python)
    log = tmp_path / 'tool.log'
    with pytest.raises(RuntimeError, match='(?s)failed with status 1.*no config file'):
        run_demo.run_tool(['tools/train.py', 'configs/demo/none.py'], log)
    assert 'no config file' in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize('name', SHORT)
def test_a_task_is_drawn_trained_and_tested(name, preloaded_python, monkeypatch, tmp_path):
    monkeypatch.setattr('sys.executable', preloaded_python)
    task = run_demo.TASKS[name]
    config = tmp_path / 'short.py'
    config.write_text(
        f'_base_ = {str(ROOT / task.config)!r}\n{SHORT[name]}\n'
        'train_dataloader = dict(batch_size=4)\n'
    )
    # No figures are asked of two iterations.
    metrics = tuple(replace(metric, minimum=None) for metric in task.metrics)
    task = replace(task, config=str(config), num_train=8, num_val=5, metrics=metrics)
    # What another version drew is replaced.
    task.draw(tmp_path / 'demo' / task.folder, num_train=1, num_val=1)
    figures = run_demo.run_task(task, tmp_path / 'demo')
    assert set(figures['metrics']) == {metric.key for metric in task.metrics}
    for metric in figures['metrics'].values():
        assert 0 <= metric['untrained'] <= 100 and 0 <= metric['trained'] <= 100
    folder = tmp_path / 'demo' / name
    assert len(list((folder / 'pictures').rglob('*.png'))) == 5
    assert (folder / 'curves.png').stat().st_size > 0
    drawn = set((folder / 'curves.csv').read_text().splitlines())
    for metric in task.metrics:
        assert any(line.startswith(f'{name},{metric.key},2,') for line in drawn)
