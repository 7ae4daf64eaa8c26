"""A run that is signalled to stop saves, reports it by its exit status, and can be resumed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.cli.preflight import find_checkpoint_to_resume
from overlock_mm.datasets.shapes import write_classification
from overlock_mm.engine.stop_signal_hook import STOPPED
from tests.conftest import ROOT
from tests.engine.small_runs import Log, config, train


class _Signalled(Log):
    """Sends the process a signal within a step."""

    priority = 'NORMAL'  # the run ends before later ones note the step

    def __init__(self, number, step):
        super().__init__()
        self.number = number
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        super().before_train_iter(runner, batch_idx, data_batch)
        if runner.iter == self.step:
            os.kill(os.getpid(), self.number)


def _stopped(cfg, number, step):
    log = _Signalled(number, step)
    with pytest.raises(SystemExit) as ended:
        train(cfg, log)
    assert ended.value.code == STOPPED == 75
    return log


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_it_saves_after_the_step_and_goes_on_exactly(number, by_epoch, tmp_path):
    def settings(name):
        return config(tmp_path / name, by_epoch, ema=True, interval=100, randomness=dict(seed=7))

    handler = signal.getsignal(number)
    expected = train(settings('whole'))
    before = _stopped(settings('stopped'), number, 6)
    assert signal.getsignal(number) is handler
    assert max(before.losses) == 6
    assert find_checkpoint_to_resume(tmp_path / 'stopped').name == 'interrupted.pth'
    after = train(settings('stopped'), resume=True)
    assert min(after.losses) == 7
    assert before.losses | after.losses == expected.losses
    assert after.batches == expected.batches[7:]


def test_accumulated_gradients_are_completed_first(tmp_path):
    cfg = config(tmp_path, by_epoch=True, interval=100)
    cfg.optim_wrapper.accumulative_counts = 4
    log = _stopped(cfg, signal.SIGTERM, 5)
    assert max(log.losses) == 7
    assert read_checkpoint(tmp_path / 'interrupted.pth')['meta']['iter'] == 8


@pytest.mark.slow
def test_all_processes_of_the_tool_are_signalled(run_python, tmp_path):
    """Workers included, as schedulers do. The weights at the end are those of a whole run."""
    data = tmp_path / 'classes'
    write_classification(data, num_train=20, num_val=5)
    config = str(ROOT / 'configs/demo/classifier_overlock_shapes.py')
    options = [
        '--cfg-options',
        f'data_root={data}',
        'train_cfg.max_epochs=3',
        'train_dataloader.batch_size=5',
        'train_dataloader.num_workers=2',
        'train_dataloader.persistent_workers=True',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]
    command = [ROOT / 'tools/train.py', config, '--work-dir']
    whole = run_python(*command, tmp_path / 'whole', *options)
    assert whole.returncode == 0, whole.stderr[-3000:]

    work = tmp_path / 'stopped'
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    with (tmp_path / 'output').open('w') as output:
        child = subprocess.Popen(
            [sys.executable, *map(str, command), str(work), *options],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        deadline = time.monotonic() + 600
        while not (work / 'epoch_1.pth').exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGTERM)
        assert child.wait(600) == STOPPED, (tmp_path / 'output').read_text()[-3000:]
    assert (work / 'last_checkpoint').read_text() == str(work / 'interrupted.pth')

    resumed = run_python(*command, work, '--resume', *options)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert 'continues exactly as an uninterrupted one would' in resumed.stdout + resumed.stderr
    one, two = (read_checkpoint(folder / 'epoch_3.pth') for folder in (tmp_path / 'whole', work))
    torch.testing.assert_close(one['state_dict'], two['state_dict'], rtol=0, atol=0)
