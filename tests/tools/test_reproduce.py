"""The published tables by one command, on small files in the form of the authors' releases."""

import json
from argparse import Namespace

import pytest
import torch

from overlock_mm.datasets.shapes import METAINFO, write_classification
from tests import official
from tests.conftest import ROOT
from tools import reproduce

CONFIG = f"""
_base_ = '{ROOT}/configs/classification/overlock_{{}}.py'
dataset = dict(metainfo=dict(classes={METAINFO['classes']}))
test_dataloader = dict(
    batch_size=5, num_workers=0, persistent_workers=False, dataset=dataset
)
val_dataloader = test_dataloader
"""
MODEL = """
  - Name: {name}
    Config: {config}
    Results:
      - Metrics:
          Top 1 Accuracy: {published}
    Converted From:
      Weights: https://example.org/{file}
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Pictures of five classes, and the authors' file of variant xt, with random weights."""
    folder = tmp_path_factory.mktemp('reproduce')
    write_classification(folder / 'data', num_train=5, num_val=5)
    (folder / 'weights').mkdir()
    state_dict = official.official_state_dict('cls', 'xt', 'training')
    weights = {k: v if k.endswith('tracked') else v.float() for k, v in state_dict.items()}
    content = {'state_dict': weights, 'args': Namespace(model='overlock_xt')}
    torch.save(content, folder / 'weights/overlock_xt.pth')
    for variant in ('xt', 't'):
        (folder / f'{variant}.py').write_text(CONFIG.format(variant))
    return folder


@pytest.fixture
def command(folder, tmp_path, preloaded_python, monkeypatch):
    """A function that runs the tool for rows (name, variant of the config, published, more)."""
    monkeypatch.setattr('sys.executable', preloaded_python)
    metafile = tmp_path / 'metafile.yml'

    def run(*rows, options=()):
        text = 'Models:\n  - Name: nothing published\n'
        for name, variant, published, *more in rows:
            row = MODEL.format(
                name=name,
                config=folder / f'{variant}.py',
                published=published,
                file='overlock_xt.pth',
            )
            text += row + ''.join(f'      {line}\n' for line in more)
        metafile.write_text(text)
        arguments = ['--task', 'classification', '--data-root', folder / 'data']
        arguments += ['--weights', folder / 'weights', '--work-dir', tmp_path / 'work']
        arguments += ['--metafile', metafile, *options]
        return reproduce.main([str(argument) for argument in arguments])

    return run


def results(tmp_path):
    content = json.loads((tmp_path / 'work/results.json').read_text())
    return {result['name']: result for result in content['results']}


@pytest.mark.slow
def test_rows_that_agree_that_differ_and_that_are_of_another_file(command, tmp_path, capsys):
    # Five classes among a thousand outputs: an untrained network finds none.
    rows = [('right', 'xt', 0.0), ('wrong', 'xt', 82.7), ('other variant', 't', 0.0)]
    rows += [('other hash', 'xt', 0.0, 'SHA256: abc')]
    assert command(*rows) == 1
    found = results(tmp_path)
    assert found['right']['agrees'] is True and found['right']['error'] is None
    assert found['wrong']['agrees'] is False
    assert found['wrong']['difference'] == {'Top 1 Accuracy': -82.7}
    assert "holds variant 'xt', and t.py is of 't'" in found['other variant']['error']
    assert 'and not abc' in found['other hash']['error']
    assert found['right']['device'].startswith('1 x ') and len(found['right']['sha256']) == 64
    page = (tmp_path / 'work/results.md').read_text()
    assert '| right | Top 1 Accuracy | 0.0 | 0.00 | +0.00 | yes |' in page
    assert '| wrong | Top 1 Accuracy | 82.7 | 0.00 | -82.70 | **no** |' in page
    assert '| other variant | Top 1 Accuracy | 0.0 | not measured |' in page


@pytest.mark.slow
def test_it_continues_where_it_was_stopped(command, tmp_path, monkeypatch, capsys):
    rows = [('first', 'xt', 0.0), ('second', 'xt', 0.0)]
    run_tool = reproduce.run_tool
    tested = []

    def stopped_at_the_second(tool, processes, log):
        if tested:
            raise KeyboardInterrupt
        tested.append(log)
        run_tool(tool, processes, log)

    monkeypatch.setattr(reproduce, 'run_tool', stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        command(*rows)
    assert list(results(tmp_path)) == ['first']
    monkeypatch.setattr(reproduce, 'run_tool', run_tool)
    assert command(*rows) == 0
    assert '1 of 2: first: done before' in capsys.readouterr().out
    assert list(results(tmp_path)) == ['first', 'second']
    # A run of some rows keeps the results of the others.
    assert command(*rows, options=['--only', 'second']) == 0
    assert set(results(tmp_path)) == {'first', 'second'}


def test_what_is_missing_is_said_for_each_row_before_the_first(command, folder, tmp_path, capsys):
    (folder / 'none').mkdir(exist_ok=True)
    rows = [('one', 'xt', 0.0), ('two', 'nothing', 0.0)]
    with pytest.raises(SystemExit):
        command(*rows, options=['--weights', folder / 'none'])
    printed = capsys.readouterr()
    assert f'one cannot start: {folder}/none/overlock_xt.pth is missing' in printed.out
    assert f'two cannot start: there is no config {folder}/nothing.py' in printed.out
    assert 'No row can start' in printed.err
    assert not (tmp_path / 'work/results.json').exists()


def test_missing_data_are_reported_for_each_row(command, folder, capsys):
    with pytest.raises(SystemExit):
        command(('one', 'xt', 0.0), options=['--data-root', folder / 'none'])
    assert 'one cannot start: ' in capsys.readouterr().out


def test_an_unknown_row_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command(('one', 'xt', 0.0), options=['--only', 'two'])
    assert '--only names two; ' in capsys.readouterr().err


def test_results_of_other_settings_are_kept(folder, tmp_path):
    args = reproduce.parse_args(['--task', 'classification', '--data-root', 'a'])
    args.work_dir = tmp_path
    row = reproduce.Row('one', folder / 'xt.py', 'https://example.org/a.pth', {'mIoU': 1.0})

    def run(row, args):
        return reproduce.Result(
            row.name, row.published, {'mIoU': 1.0}, {'mIoU': 0.0}, True, seconds=1.0
        )

    assert reproduce.reproduce([row], args, run)[0].agrees
    args.train = True
    with pytest.raises(ValueError, match='holds results of other settings .* another --work-dir'):
        reproduce.reproduce([row], args, run)


@pytest.mark.parametrize('task', reproduce.TASKS)
def test_the_published_results_of_this_package_are_found(task):
    rows = reproduce.published_rows(ROOT / f'configs/{task}/metafile.yml')
    assert len(rows) >= 3
    for row in rows:
        assert row.config.is_file() and row.file_name.endswith('.pth')
        assert all(20 < value < 100 for value in row.published.values()) and row.published


def test_training_starts_from_imagenet_weights_in_the_folder(tmp_path):
    (row,) = reproduce.published_rows(
        ROOT / 'configs/segmentation/metafile.yml', ['upernet_overlock_t_160k_ade20k']
    )
    arguments = [
        '--task',
        'segmentation',
        '--data-root',
        'a',
        '--weights',
        str(tmp_path),
        '--train',
    ]
    args = reproduce.parse_args(arguments)
    with pytest.raises(FileNotFoundError, match='overlock_t_in1k_224.pth is missing'):
        reproduce._find_weights(row, args)
    (tmp_path / 'overlock_t_in1k_224.pth').touch()
    assert reproduce._find_weights(row, args) == str(tmp_path / 'overlock_t_in1k_224.pth')


@pytest.mark.slow
def test_training_as_published_then_testing(folder, tmp_path, preloaded_python, monkeypatch):
    monkeypatch.setattr('sys.executable', preloaded_python)
    config = tmp_path / 'small.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/demo/classifier_overlock_shapes.py'\n"
        'train_cfg = dict(max_epochs=1, val_begin=2)\ntrain_dataloader = dict(batch_size=5)\n'
    )
    arguments = ['--task', 'classification', '--data-root', str(folder / 'data'), '--train']
    args = reproduce.parse_args(arguments)
    args.work_dir = tmp_path / 'work'
    row = reproduce.Row('small', config, 'https://example.org/a.pth', {'Top 1 Accuracy': 20.0})
    (result,) = reproduce.reproduce([row], args)
    assert result.error is None and 0 <= result.measured['Top 1 Accuracy'] <= 100
