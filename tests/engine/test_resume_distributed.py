"""Runs of two processes (gloo, started by torchrun) resume bit-identically, too."""

import json

import pytest
import torch

from overlock_mm.checkpoint import read_checkpoint
from tests.engine.resume_step import CASES, KILLED_AFTER, Path, settings
from tests.engine.small_runs import train
from tests.engine.test_data_parallel import TORCHRUN

pytestmark = pytest.mark.slow

STEP = Path(__file__).with_name('resume_step.py')


@pytest.fixture(scope='module')
def runs(run_python, tmp_path_factory):
    """The folder of all runs: to start processes takes longer than they do."""
    folder = tmp_path_factory.mktemp('runs')
    result = run_python(*TORCHRUN, STEP, folder, *CASES)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def log_of(folder):
    return ''.join(log.read_text() for log in folder.glob('*/*.log'))


@pytest.mark.parametrize('case', CASES)
def test_two_resumed_processes_are_the_uninterrupted_ones(case, runs):
    losses = []
    for rank in range(2):
        whole, before, after = json.loads((runs / f'{case}_{rank}.json').read_text())
        assert 0 < int(min(after, key=int)) < KILLED_AFTER
        assert before | after == whole
        losses.append(whole)
    # Each process has images and generators of its own.
    assert losses[0] != losses[1]
    final = 'iter_15.pth' if case == 'iterations' else 'iter_6.pth'
    final = 'epoch_3.pth' if case == 'epochs' else final
    one, two = (read_checkpoint(runs / f'{case}_{run}' / final) for run in ('whole', 'killed'))
    for checkpoint in (one, two):  # FSDP names parameters there, which are no tensors
        checkpoint['optimizer'] = checkpoint['optimizer']['state']
    for part in ('state_dict', 'optimizer', 'ema_state_dict', 'resume_state'):
        if part in one:
            torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert len(one['resume_state']['generators']) == 2
    assert 'continues exactly as an uninterrupted one would' in log_of(runs / f'{case}_killed')


def test_another_number_of_processes_is_told(runs, tmp_path):
    cfg = settings('mid-epoch', runs / 'mid-epoch_killed')
    cfg.launcher = 'none'
    cfg.train_cfg.max_epochs = 4
    train(cfg, resume=True)
    assert '2 process(es) wrote the checkpoint, 1 continue' in log_of(runs / 'mid-epoch_killed')
