"""A run that is killed, or finds the disk full, keeps its earlier checkpoints."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.cli.preflight import find_checkpoint_to_resume
from overlock_mm.engine.checkpoint_hook import AtomicCheckpointHook, AtomicLocalBackend

ROOT = Path(__file__).resolve().parents[2]


class _Model(BaseModel):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.weight.sum() * inputs.mean()}


def _runner(work_dir, epochs, size=8, **hook):
    return Runner(
        model=_Model(size),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[torch.ones(1)], sampler=dict(type='DefaultSampler'), batch_size=1
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1, **hook)),
        default_scope='mmengine',
        experiment_name=f'{work_dir}-{epochs}',
    )


def test_outdated_checkpoints_go_in_the_end(tmp_path):
    _runner(tmp_path, 4, max_keep_ckpts=2).train()
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['epoch_3.pth', 'epoch_4.pth']
    assert not list(tmp_path.glob('.partial-*'))


def test_full_disk_while_saving_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    whole_put = AtomicLocalBackend.put

    def put(self, obj, filepath):
        if filepath.endswith('epoch_2.pth'):
            raise OSError(errno.ENOSPC, 'No space left on device')
        whole_put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', put)
    with pytest.raises(OSError, match='No space left'):
        _runner(tmp_path, 3, max_keep_ckpts=1).train()
    assert find_checkpoint_to_resume(tmp_path) == tmp_path / 'epoch_1.pth'
    assert read_checkpoint(tmp_path / 'epoch_1.pth')['meta']['epoch'] == 1


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    backend = AtomicLocalBackend()
    target = tmp_path / 'folder/file'
    backend.put(b'old', target)

    def fail(*args):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr('os.fsync', fail)
    with pytest.raises(OSError, match='Input/output'):
        backend.put(b'new', target)
    assert target.read_bytes() == b'old'
    assert [path.name for path in target.parent.iterdir()] == ['file']


def test_best_checkpoint_saved_again_under_its_name_stays(tmp_path):
    runner = _runner(tmp_path, 1, save_best='score', rule='greater')
    hook = next(hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook))
    runner.train()
    for score in (1.0, 2.0):  # the epoch is the same, as after a resume
        hook.after_val_epoch(runner, {'score': score})
    (best,) = tmp_path.glob('best_score_*.pth')
    assert read_checkpoint(best)['message_hub']['runtime_info']['best_score'] == 2.0


@pytest.mark.slow
def test_a_validation_without_the_metric_of_the_best_goes_on(tmp_path):
    runner = _runner(tmp_path, 1, save_best='coco/bbox_mAP')
    warnings = []
    runner.logger.warning = warnings.append
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook))
    hook.before_train(runner)
    hook.after_val_epoch(runner, {'pascal_voc/mAP': 0.5, 'pascal_voc/AP50': 0.6})
    (warning,) = warnings
    assert 'no coco/bbox_mAP, only pascal_voc/mAP, pascal_voc/AP50' in warning
    assert 'default_hooks.checkpoint.save_best' in warning
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.5})
    assert [path.name for path in tmp_path.glob('*.pth')] == ['best_coco_bbox_mAP_epoch_0.pth']


@pytest.mark.slow
def test_killed_while_writing(tmp_path):
    """SIGKILL while a checkpoint is half written: the one before is whole and resumes."""
    child = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import sys; sys.path.insert(0, sys.argv[1]);'
            'from tests.engine.test_checkpoint_hook import _runner;'
            # 100 MB, so that writing takes long enough to be hit.
            '_runner(sys.argv[2], 1000, size=25_000_000, max_keep_ckpts=1).train()',
            str(ROOT),
            str(tmp_path),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        half_written = _wait_for_a_half_written_checkpoint(tmp_path, child)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert half_written.stat().st_size < 100_000_000, 'killed too late to show anything'

    newest = find_checkpoint_to_resume(tmp_path)
    assert newest.name != half_written.name.removeprefix('.partial-')
    epoch = read_checkpoint(newest)['meta']['epoch']
    assert newest.name == f'epoch_{epoch}.pth'


def _wait_for_a_half_written_checkpoint(folder, child):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert child.poll() is None, 'the run ended by itself'
        # The third, so that one is there and an older one was removed.
        for path in folder.glob('.partial-epoch_*.pth'):
            if (folder / 'last_checkpoint').exists() and path.name not in (
                '.partial-epoch_1.pth',
                '.partial-epoch_2.pth',
            ):
                return path
        time.sleep(0.002)
    raise AssertionError('no checkpoint was written in two minutes')


@pytest.mark.parametrize('pointer', ['', '/moved/away/epoch_2.pth', '/gone/epoch_9.pth', None])
def test_resume_finds_the_newest_whatever_the_pointer_says(tmp_path, pointer):
    for epoch, age in ((1, 20), (2, 10)):
        path = tmp_path / f'epoch_{epoch}.pth'
        path.write_bytes(b'')
        stamp = time.time() - age
        os.utime(path, (stamp, stamp))
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_text(pointer)
    assert find_checkpoint_to_resume(tmp_path) == tmp_path / 'epoch_2.pth'


def test_nothing_to_resume(tmp_path):
    assert find_checkpoint_to_resume(tmp_path) is None
