"""Two processes (gloo, started by torchrun) do what one does."""

from pathlib import Path

import pytest
import torch

from overlock_mm.checkpoint import read_checkpoint
from tests.conftest import DEMO, ROOT

pytestmark = pytest.mark.slow

STEP = Path(__file__).with_name('data_parallel_step.py')
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2)


@pytest.fixture(scope='module')
def step_of_one_process(run_python, tmp_path_factory):
    path = tmp_path_factory.mktemp('one_process') / 'step.pth'
    result = run_python(STEP, path)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize('strategy', [(), ('BlockFSDPStrategy',)], ids=['copies', 'shards'])
def test_a_step_is_that_of_one_process(strategy, step_of_one_process, run_python, tmp_path):
    path = tmp_path / 'step.pth'
    result = run_python(*TORCHRUN, STEP, path, *strategy)
    assert result.returncode == 0, result.stderr[-3000:]
    one = step_of_one_process
    two = torch.load(path, weights_only=True)
    assert (one['images'], two['images']) == (4, 2)
    assert one['gradients'].keys() == two['gradients'].keys()
    largest = max(gradient.abs().max() for gradient in one['gradients'].values())
    assert largest > 0
    for name, expected in one['gradients'].items():
        difference = (two['gradients'][name] - expected).abs().max()
        assert difference <= 1e-10 * largest, name


def test_train_tool_under_torchrun(run_python, tiny_run, tmp_path):
    work_dir = tmp_path / 'work'
    result = run_python(
        *TORCHRUN,
        ROOT / 'tools/train.py',
        DEMO,
        '--launcher',
        'pytorch',
        '--work-dir',
        work_dir,
        *tiny_run,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Four pictures, two processes of two each: one iteration.
    assert read_checkpoint(work_dir / 'epoch_1.pth')['meta']['iter'] == 1
