"""Two processes (gloo, started by torchrun) do what one does."""

from pathlib import Path

import pytest
import torch

from overlock_mm.checkpoint import read_checkpoint
from tests.tools.conftest import DEMO, ROOT

pytestmark = pytest.mark.slow

STEP = Path(__file__).with_name('data_parallel_step.py')
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2)


def test_gradients_are_those_of_one_process(run_python, tmp_path):
    alone, shared = tmp_path / 'alone.pth', tmp_path / 'shared.pth'
    for command, path in (((STEP,), alone), ((*TORCHRUN, STEP), shared)):
        result = run_python(*command, path)
        assert result.returncode == 0, result.stderr[-3000:]
    one = torch.load(alone, weights_only=True)
    two = torch.load(shared, weights_only=True)
    assert (one['images'], two['images']) == (4, 2)
    assert all(gradient is not None for gradient in one['gradients'].values())
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
