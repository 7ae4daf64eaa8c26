"""A data loader that can start anywhere, with samples that do not depend on earlier ones."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler

from overlock_mm.engine.random_states import seeded

#: Signals with which schedulers announce that they are going to end a run.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_OF_BATCHES = ('batch_size', 'shuffle', 'sampler', 'batch_sampler', 'drop_last')


class _Request(NamedTuple):
    sample: int
    epoch: int
    position: int


class ResumableLoader(DataLoader):
    """Batches of an existing loader, each sample drawn with generators of its own.

    Before a sample is loaded, the generators of Python, NumPy and PyTorch are seeded from the run's
    seed, the epoch and the sample's position among those of all processes, so its augmentation does
    not depend on the number of workers or on what was loaded before. ``begin(epoch, batch)`` starts
    in the middle without loading what lies before.

    Args:
        loader: Loader of a map-style data set, as mmengine builds it, not iterated yet.
        seed: Seed of the run.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int = 0, world_size: int = 1) -> None:
        names = [name for name in inspect.signature(DataLoader).parameters if hasattr(loader, name)]
        settings = {name: getattr(loader, name) for name in names if name not in _OF_BATCHES}
        # Without its own generator, a loader draws from that of the process at each iteration.
        settings['generator'] = torch.Generator()
        settings['worker_init_fn'] = partial(_start_worker, loader.worker_init_fn)
        if type(loader.batch_sampler) is BatchSampler and loader.batch_size is not None:
            names = ['batch_size', 'sampler', 'drop_last']
        else:
            names = ['batch_sampler']
        super().__init__(**settings, **{name: getattr(loader, name) for name in names})
        # PyTorch asks data sets for whole batches by this name.
        self.dataset.__getitems__ = _SeededItems(self.dataset, seed)  # type: ignore[attr-defined]
        # Bypass the lock that protects active iterators, as there are none yet. The base class must
        # not make it: `batch_size` and `sampler` would be None, and hooks look at them.
        self.batches = _NumberedBatches(self.batch_sampler, rank, world_size)
        vars(self)['batch_sampler'] = self.batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that workers start with the first batch: mmengine up to 0.10.7 makes the
        # iterator of an iteration-based run before it knows where the run resumes.
        yield from super().__iter__()

    def begin(self, epoch: int, batch: int = 0) -> int:
        """Let the next iteration be that of the given epoch, starting at a batch.

        Only indices are drawn, no data is loaded.

        Returns:
            How many batches were left out: ``batch``, or fewer if the epoch ends before.
        """
        return self.batches.begin(epoch, batch)

    def endless(self, batch: int = 0) -> Iterator[Any]:
        """Yield batches of an iteration-based run, epoch after epoch, from a batch on."""
        for epoch in count():
            batch -= self.begin(epoch, batch)
            if batch == 0:
                yield from self


class _NumberedBatches(Sampler):
    """Batches of a batch sampler, with epoch and position beside each index."""

    def __init__(self, batch_sampler: Any, rank: int, world_size: int) -> None:
        self.batch_sampler = batch_sampler
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._begun: Iterator[list[_Request]] | None = None
        # Where mmengine and hooks look for them.
        for name in ('sampler', 'batch_size', 'drop_last'):
            if hasattr(batch_sampler, name):
                setattr(self, name, getattr(batch_sampler, name))

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[_Request]]:
        # A generator: PyTorch makes two iterators and uses the second.
        begun, self._begun = self._begun, None
        yield from begun or self._batches()

    def begin(self, epoch: int, batch: int) -> int:
        self.epoch = epoch
        for sampler in (self.batch_sampler, getattr(self.batch_sampler, 'sampler', None)):
            if sampler is not None and hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
        self._begun = self._batches()
        return sum(1 for _ in islice(self._begun, batch))

    def _batches(self) -> Iterator[list[_Request]]:
        drawn = 0
        for indices in self.batch_sampler:
            # mmengine's samplers deal the samples of an epoch to the processes in turn.
            yield [
                _Request(index, self.epoch, number * self.world_size + self.rank)
                for number, index in enumerate(indices, drawn)
            ]
            drawn += len(indices)


class _SeededItems:
    """Samples of a data set, each loaded with generators seeded for it."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __call__(self, requests: list[Any]) -> list[Any]:
        return [self._sample(request) for request in requests]

    def _sample(self, request: Any) -> Any:
        if not isinstance(request, _Request):  # of a validation on the same data set
            return self.dataset[request]
        source = np.random.SeedSequence((self.seed, request.epoch, request.position))
        with seeded(int(source.generate_state(1)[0])):
            return self.dataset[request.sample]


def _start_worker(initialize: Callable[[int], None] | None, worker: int) -> None:
    # A scheduler signals all processes of a job. The main process decides, and ends its workers.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    if initialize is not None:
        initialize(worker)


def _wait_for_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != parent:
        pass
    os._exit(0)  # as PyTorch's workers do when their parent signals them
