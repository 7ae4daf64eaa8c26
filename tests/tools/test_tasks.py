"""Segmentation and classification train and test through the same tools as detection."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from overlock_mm.analysis import read_run
from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.datasets.shapes import write_classification
from tests.conftest import ROOT
from tools import test as test_tool

pytestmark = pytest.mark.slow

# Per demo: what shortens it to two iterations, the name of the checkpoint, a metric.
RUNS = {
    'upernet_overlock_shapes': (
        [
            'train_cfg.max_iters=2',
            'train_cfg.val_interval=2',
            'train_dataloader.batch_size=2',
            'default_hooks.checkpoint.interval=2',
        ],
        'iter_2.pth',
        'mIoU',
    ),
    'classifier_overlock_shapes': (
        ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=5'],
        'epoch_1.pth',
        'accuracy/top1',
    ),
}


@pytest.mark.parametrize('demo', RUNS)
def test_train_then_test_with_augmentation(demo, shapes_root, run_python, tmp_path):
    options, name, metric = RUNS[demo]
    if demo.startswith('upernet'):
        data_root, pictures = shapes_root.parent / 'ade', 2
    else:
        data_root, pictures = tmp_path / 'classes', 5
        write_classification(data_root, num_train=10, num_val=5)
    config = str(ROOT / f'configs/demo/{demo}.py')
    options = [
        '--cfg-options',
        f'data_root={data_root}',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
        'tensorboard=True',
        *options,
    ]
    work = tmp_path / 'work'
    result = run_python(ROOT / 'tools/train.py', config, '--work-dir', work, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert read_checkpoint(work / name)['meta']['iter'] == 2
    curves = read_run(work).curves
    # The second head learns too.
    heads = ('decode.loss_ce', 'aux.loss_ce') if metric == 'mIoU' else ('loss', 'loss_aux')
    for head in heads:
        assert curves[head].steps.tolist() == [1, 2]
        assert (curves[head].values > 0).all()
    assert curves[metric].held_out and curves[metric].steps.tolist() == [2]
    # What is logged reaches TensorBoard too.
    events = EventAccumulator(str(next(work.glob('*/vis_data')))).Reload()
    for key in (*heads, metric):
        shown = [event.value for event in events.Scalars(key)]
        assert shown == pytest.approx(curves[key].values.tolist())

    test = [config, str(work / name), '--work-dir', str(tmp_path / 'test')]
    expected = {metric} if metric == 'mIoU' else {metric, 'auxiliary/top1'}
    assert expected <= set(test_tool.main([*test, '--tta', *options]))
    # In a process of its own: a process has one visualizer, and its folder is that of its birth.
    drawn = tmp_path / 'drawn'
    result = run_python(ROOT / 'tools/test.py', *test, '--show-dir', drawn, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(list(drawn.rglob('*.png'))) == pictures


def test_a_classifier_is_drawn_without_augmentation_alone(tmp_path, capsys):
    write_classification(tmp_path / 'classes', num_train=5, num_val=5)
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}}, path)
    config = str(ROOT / 'configs/demo/classifier_overlock_shapes.py')
    with pytest.raises(SystemExit):
        test_tool.main(
            [
                config,
                str(path),
                '--tta',
                '--show-dir',
                str(tmp_path),
                '--work-dir',
                str(tmp_path),
                '--cfg-options',
                f'data_root={tmp_path / "classes"}',
            ]
        )
    assert '--show-dir does not go with --tta' in capsys.readouterr().err
