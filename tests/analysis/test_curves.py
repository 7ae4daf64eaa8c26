"""Curves of training logs."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from overlock_mm.analysis import plot_curves, read_run
from overlock_mm.analysis.curves import select_keys, smoothed
from tools.analysis_tools import analyze_logs


def write_log(folder, records, name='20260101_000000'):
    """A ``scalars.json`` as mmengine writes it."""
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def by_epoch(steps, per_epoch=10, factor=1.0):
    """Log lines of an epoch-based run, each epoch with its validation."""
    for step in steps:
        epoch = (step - 1) // per_epoch + 1
        # The keys in mmengine's order, with an integer among the values.
        yield {
            'lr': 0.1,
            'loss': factor * step,
            's0.acc': 50,
            'time': 1.0,
            'epoch': epoch,
            'iter': step,
            'step': step,
        }
        if step % per_epoch == 0:
            yield {'coco/bbox_mAP': step / 100, 'coco/bbox_mAP_l': -1.0, 'time': 1, 'step': epoch}


@pytest.fixture
def run(tmp_path):
    write_log(tmp_path / 'detector', by_epoch(range(5, 41, 5)))
    return read_run(tmp_path / 'detector')


def test_validation_of_an_epoch_stands_at_its_iteration(run):
    assert run.name == 'detector'
    assert set(run.curves) == {'lr', 'loss', 's0.acc', 'coco/bbox_mAP', 'coco/bbox_mAP_l'}
    loss, metric = run.curves['loss'], run.curves['coco/bbox_mAP']
    assert loss.steps.tolist() == list(range(5, 41, 5)) == loss.values.tolist()
    assert not loss.held_out and metric.held_out
    assert metric.steps.tolist() == [10, 20, 30, 40]
    assert metric.values.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_validation_of_a_run_without_epochs_tells_its_iteration(tmp_path):
    lines = [
        {'loss': 1.0, 'iter': 50, 'step': 50},
        {'mIoU': 8.0, 'step': 75},
        {'loss': 0.5, 'iter': 100, 'step': 100},
    ]
    write_log(tmp_path, lines)
    run = read_run(tmp_path)
    assert run.curves['mIoU'].steps.tolist() == [75]
    assert run.curves['loss'].steps.tolist() == [50, 100]


def test_a_resumed_run_is_one_run_and_its_later_part_counts(tmp_path):
    write_log(tmp_path, by_epoch(range(5, 36, 5)), '20260101_000000')
    write_log(tmp_path, by_epoch(range(25, 41, 5), factor=2.0), '20260102_000000')
    run = read_run(tmp_path)
    assert run.curves['loss'].steps.tolist() == list(range(5, 41, 5))
    assert run.curves['loss'].values.tolist() == [5, 10, 15, 20, 50, 60, 70, 80]
    assert run.curves['coco/bbox_mAP'].steps.tolist() == [10, 20, 30, 40]


def test_any_part_of_a_work_directory_names_the_run(tmp_path):
    log = write_log(tmp_path / 'work', by_epoch(range(5, 11, 5)))
    for path in (tmp_path / 'work', log.parent.parent, log):
        run = read_run(path)
        assert run.name == 'work'
        assert run.curves['loss'].steps.tolist() == [5, 10]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    log = write_log(tmp_path, by_epoch([5]))
    with log.open('a') as file:
        file.write('{"loss": 1.0, "it')
    assert read_run(tmp_path).curves['loss'].steps.tolist() == [5]
    with log.open('a') as file:
        file.write('\n')
    with pytest.raises(ValueError, match='line 2, is not a line of a training log'):
        read_run(tmp_path)


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no run at'):
        read_run(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='not the work directory of a training run'):
        read_run(tmp_path)
    write_log(tmp_path, [])
    with pytest.raises(ValueError, match='is empty: the run ended before its first line'):
        read_run(tmp_path)
    for content in ('[1, 2]\n', '{"loss": 1.0}\n', '"text"\n', '{"step": 1, "loss": null, \n'):
        next(tmp_path.rglob('scalars.json')).write_text(content)
        with pytest.raises(ValueError, match='line 1, is not a line of a training log'):
            read_run(tmp_path)


def test_keys_are_chosen_by_pattern(run):
    assert select_keys([run]) == ['loss', 'coco/bbox_mAP']
    assert select_keys([run], ['coco/*', 'loss', 'l*']) == [
        'coco/bbox_mAP',
        'coco/bbox_mAP_l',
        'loss',
        'lr',
    ]
    with pytest.raises(ValueError, match=r"'mIoU'. Known are: lr, loss, s0.acc, coco/bbox_mAP,"):
        select_keys([run], ['loss', 'mIoU'])
    with pytest.raises(ValueError, match='At least one run'):
        select_keys([])


def test_smoothing_is_a_weighted_mean_of_the_past():
    values = np.array([1.0, 4.0, np.nan, 2.0])
    assert np.array_equal(smoothed(values, 0.0), values, equal_nan=True)
    expected = [1.0, (4 + 0.5 * 1) / 1.5, np.nan, (2 + 0.5 * 4 + 0.25 * 1) / 1.75]
    assert np.allclose(smoothed(values, 0.5), expected, equal_nan=True)
    assert np.allclose(smoothed(np.full(9, 3.0), 0.99), 3.0)
    for weight in (-0.1, 1.0, float('nan')):
        with pytest.raises(ValueError, match='at least 0 and below 1'):
            smoothed(values, weight)


def test_the_tool_draws_runs_over_one_another(tmp_path, capsys):
    for name, factor in (('a', 1.0), ('b', 2.0)):
        write_log(tmp_path / name, by_epoch(range(5, 41, 5), factor=factor))
    out = tmp_path / 'new' / 'figure.png'
    arguments = [str(tmp_path / 'a'), str(tmp_path / 'b'), '--smooth', '0.5', '--out', str(out)]
    assert analyze_logs.main(arguments) == ['loss', 'coco/bbox_mAP']
    assert str(out) in capsys.readouterr().out
    assert sorted(path.name for path in out.parent.iterdir()) == ['figure.csv', 'figure.png']
    pixels = np.asarray(Image.open(out).convert('RGB')).reshape(-1, 3)
    # Both runs are drawn in colours of their own.
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 200
    with out.with_suffix('.csv').open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row['value']) for row in rows if (row['run'], row['key']) == ('b', 'loss')]
    # The logged values, regardless of the smoothing.
    assert losses == [2.0 * step for step in range(5, 41, 5)]
    assert {row['step'] for row in rows if row['key'] == 'coco/bbox_mAP'} == {
        '10',
        '20',
        '30',
        '40',
    }


def test_runs_of_one_name_go_by_their_paths(tmp_path):
    folders = [tmp_path / part / 'work' for part in 'ab']
    for folder in folders:
        write_log(folder, by_epoch([5, 10]))
    out = tmp_path / 'curves.png'
    analyze_logs.main([*map(str, folders), '--out', str(out)])
    with out.with_suffix('.csv').open() as file:
        assert {row['run'] for row in csv.DictReader(file)} == set(map(str, folders))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['none'], 'There is no run at'),
        (['work', '--keys', 'mIoU'], 'Known are: lr, loss'),
        (['work', '--out', 'curves.pdf'], r'must end in .png'),
        (['work', '--smooth', '1'], 'at least 0 and below 1'),
        (['work', 'work'], 'Each run needs a name of its own'),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    options, message, tmp_path, monkeypatch, capsys
):
    write_log(tmp_path / 'work', by_epoch([5, 10]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        analyze_logs.main(options)
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['work']


def test_a_figure_that_fails_leaves_the_old_files(run, tmp_path, monkeypatch):
    out = tmp_path / 'out' / 'curves.png'
    plot_curves([run], out)
    before = {path: path.read_bytes() for path in out.parent.iterdir()}

    def fail(*args, **kwargs):
        raise OSError('disk full')

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        plot_curves([run], out, keys=['lr'])
    monkeypatch.undo()
    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        plot_curves([run], out, keys=['lr'])
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before
