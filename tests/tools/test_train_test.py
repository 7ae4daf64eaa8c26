"""Training, resuming and testing through the tools, on real files."""

import json
import pickle

import pytest

from overlock_mm.checkpoint import read_checkpoint
from tests.conftest import DEMO, ROOT
from tools import test as test_tool

pytestmark = pytest.mark.slow

TRAIN, TEST = ROOT / 'tools/train.py', ROOT / 'tools/test.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny_run, run_python):
    """Work directory of a run of two iterations."""
    work_dir = tmp_path_factory.mktemp('run') / 'work'
    result = run_python(TRAIN, DEMO, '--work-dir', work_dir, *tiny_run)
    assert result.returncode == 0, result.stderr[-3000:]
    return work_dir


def test_train_writes_a_checkpoint_that_reads_safely(trained):
    checkpoint = read_checkpoint(trained / 'epoch_1.pth')
    assert (checkpoint['meta']['epoch'], checkpoint['meta']['iter']) == (1, 2)
    assert (trained / 'last_checkpoint').read_text() == str(trained / 'epoch_1.pth')


def test_resume_goes_on_and_test_reports(trained, tiny_run, run_python, tmp_path):
    longer = [option.replace('max_epochs=1', 'max_epochs=2') for option in tiny_run]
    result = run_python(TRAIN, DEMO, '--work-dir', trained, '--resume', *longer)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'resumed epoch: 1, iter: 2' in result.stdout + result.stderr
    checkpoint = read_checkpoint(trained / 'epoch_2.pth')
    assert checkpoint['meta']['iter'] == 4
    # Adam's own count: its state was resumed, not begun again.
    steps = {int(state['step']) for state in checkpoint['optimizer']['state'].values()}
    assert steps == {4}

    result = run_python(TEST, DEMO, trained / 'epoch_2.pth', '--work-dir', tmp_path, *tiny_run)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP_50'} <= set(metrics)


def test_outputs_of_test_with_augmentation(trained, tiny_run, tmp_path):
    checkpoint = next(trained.glob('epoch_*.pth'))
    metrics = test_tool.main(
        [
            DEMO,
            str(checkpoint),
            '--work-dir',
            str(tmp_path / 'work'),
            '--out',
            str(tmp_path / 'out/predictions.pkl'),
            '--show-dir',
            str(tmp_path / 'drawn'),
            '--tta',
            *tiny_run,
        ]
    )
    assert 'coco/segm_mAP' in metrics
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == 2
    predictions = pickle.loads((tmp_path / 'out/predictions.pkl').read_bytes())
    assert len(predictions) == 2
    for prediction in predictions:
        instances = prediction['pred_instances']
        assert 0 < len(instances['scores']) <= 10  # five from each of two views
        # Run lengths, at the size of the picture.
        assert instances['masks'][0]['size'] == [128, 160]
