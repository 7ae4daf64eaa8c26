"""Saves the state of a run that its scheduler is going to end."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from overlock_mm.engine.checkpoint_hook import (
    ATOMIC_BACKEND,
    INTERRUPTED,
    AtomicLocalBackend,
)
from overlock_mm.engine.resumable_loader import STOP_SIGNALS

#: Exit status of a run that saved and can be resumed: "temporary failure" of ``sysexits.h``.
STOPPED = os.EX_TEMPFAIL


class StopSignalHook(Hook):
    """After SIGTERM or SIGUSR1, saves ``interrupted.pth`` and ends the process with status 75.

    It does so after the training step under way, or, if gradients are accumulated, after the one
    that completes them; a validation is finished first. With several processes it is enough if one
    of them gets the signal.

    :func:`overlock_mm.engine.runner.build_runner` registers it.
    """

    # After the hooks that count, average and save.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._received = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Handle the signals from now on."""
        if threading.current_thread() is threading.main_thread():  # Python refuses elsewhere
            self._handlers = {
                number: signal.signal(number, self._receive) for number in STOP_SIGNALS
            }

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and leave if a process was signalled.

        Raises:
            SystemExit: A signal was received; the status is 75.
        """
        received = torch.tensor(self._received)
        all_reduce(received, 'max')
        # No checkpoint holds partially accumulated gradients.
        if not received or not getattr(runner.optim_wrapper, 'should_update', lambda: True)():
            return
        name = signal.Signals(int(received)).name
        runner.logger.warning(f'{name}: saving {INTERRUPTED}, then ending with status {STOPPED}.')
        runner.save_checkpoint(
            runner.work_dir,
            INTERRUPTED,
            by_epoch=False,
            backend_args=dict(backend=ATOMIC_BACKEND),
        )
        if is_main_process():
            path = os.path.join(runner.work_dir, INTERRUPTED)
            AtomicLocalBackend().put_text(path, os.path.join(runner.work_dir, 'last_checkpoint'))
        barrier()  # a launcher may end all processes as soon as one has ended
        runner.visualizer.close()
        self.after_train(runner)
        raise SystemExit(STOPPED)

    def after_train(self, runner: Runner) -> None:
        """Handle the signals as before the training."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: Any) -> None:
        self._received = number
