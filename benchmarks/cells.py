"""One cell of a table after the other: what fails, takes too long or breaks costs its own cell."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

logger = logging.getLogger('benchmarks')

#: Seconds after which the alarm rings again, where a library has swallowed the first one.
AGAIN = 5.0


class OutOfTimeError(TimeoutError):
    """A cell took longer than it may."""


class DeviceLostError(RuntimeError):
    """After an error the process can no longer use the card; another process can."""


@dataclass
class Deadline:
    """When to begin no further cell, and how long one may take.

    Attributes:
        seconds: For the whole run, or None.
        cell: For each cell, or None.
    """

    seconds: float | None = None
    cell: float | None = None
    _started: float = field(default_factory=time.monotonic)

    def left(self) -> float | None:
        """Seconds that are left."""
        if self.seconds is None:
            return None
        return max(0.0, self.seconds - (time.monotonic() - self._started))

    def is_over(self) -> bool:
        """Whether nothing is left."""
        return self.left() == 0.0

    def of_a_cell(self) -> float | None:
        """Seconds that the next cell may take."""
        limits = [limit for limit in (self.cell, self.left()) if limit is not None]
        return min(limits, default=None)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise within the block when the time is over; only in the main thread, and not on Windows.

    The alarm rings between two steps of Python, so not within a kernel that hangs.

    Raises:
        OutOfTimeError: The block takes longer.
    """
    main = threading.current_thread() is threading.main_thread()
    if seconds is None or not main or not hasattr(signal, 'setitimer'):
        yield
        return

    def over(*_: object) -> None:
        raise OutOfTimeError(f'took longer than {seconds:.0f} s')

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: BaseException) -> str:
    """Type and message, shortened."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def measured(
    name: str, measure: Callable[[], dict[str, Any]], deadline: Deadline
) -> dict[str, Any] | None:
    """What a cell gives, or ``{'not_measured': why}``; None where the run's time was over first."""
    try:
        with time_limit(deadline.of_a_cell()):
            return measure()
    # Whatever a library raises that cannot run the case.
    except Exception as error:
        if deadline.is_over():
            return None
        logger.error('  %-40s not measured: %s', name, one_line(error))
        return {'not_measured': one_line(error)}


def check_device(device: torch.device) -> None:
    """Free what a cell has left behind, and see whether the card still works.

    Raises:
        DeviceLostError: It does not, as after an illegal access to memory.
    """
    gc.collect()
    if device.type != 'cuda':
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.rand(1, device=device)  # fails after a graph whose capture was cut off
    except RuntimeError as error:
        raise DeviceLostError(one_line(error)) from error


@contextmanager
def compiling() -> Iterator[None]:
    """Nothing compiled for another cell counts, and falling back to eager mode is an error."""
    torch.compiler.reset()
    # Networks and blocks of a kind share code, and each is a compilation of its own.
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()
