"""Makes a resumed run identical to an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from overlock_mm.engine.random_states import random_states, set_random_states
from overlock_mm.engine.resumable_loader import ResumableLoader

_KEY = 'resume_state'


class ResumeHook(Hook):
    """Adds the states that mmengine leaves out to checkpoints, and restores them.

    These are the states of the random generators of every process, the position in the epoch, and
    the size to which a data preprocessor currently resizes batches. A resumed run then continues
    with the next batch, without loading earlier ones, and computes the same numbers as an
    uninterrupted run. The log gives the reasons when that cannot hold.

    Validation restores the generators afterwards, so a run does not depend on how often it is
    validated.

    :func:`overlock_mm.engine.runner.build_runner` registers it and gives it the loader it needs.
    """

    # Before the hooks that save.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._batch = 0
        self._before_validation: dict[str, Any] | None = None
        self._gathered: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None
        self._generators: dict[str, Any] | None = None

    def gather(self, runner: Runner) -> None:
        """Collect the states of all processes; each must call it before a checkpoint is saved."""
        states = self._before_validation or random_states()
        processes: list[Any] = all_gather_object(states)
        self._gathered = dict(
            generators=processes,
            batch=self._batch,
            epoch_length=_length(runner),
            input_sizes=[module._input_size for module in _with_input_size(runner)],
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the collected states into the checkpoint."""
        checkpoint[_KEY] = self._gathered

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what the checkpoint says about the run that wrote it."""
        self._resumed = checkpoint.get(_KEY, {})

    def before_train(self, runner: Runner) -> None:
        """Compare this run with the previous one, and log the differences."""
        self._batch = 0
        if runner.iter == 0 or self._resumed is None:
            return  # from the beginning, perhaps with the weights of another run
        differences = list(_differences(runner, self._resumed))
        if differences:
            runner.logger.warning(
                'From here on the run may differ from an uninterrupted one:\n- '
                + '\n- '.join(differences)
            )
        else:
            runner.logger.info('The run continues exactly as an uninterrupted one would.')
        generators = self._resumed.get('generators', [])
        if len(generators) == get_world_size():
            self._generators = generators[get_rank()]
        if self._resumed.get('epoch_length') == _length(runner):
            self._batch = self._resumed['batch']
        sizes = self._resumed.get('input_sizes', [])
        for module, size in zip(_with_input_size(runner), sizes, strict=False):
            module._input_size = size
        self._resumed = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Let the loader begin with the batch that is next."""
        loop: Any = runner.train_loop
        loader = loop.dataloader
        if not isinstance(loader, ResumableLoader):
            return
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _BatchesFrom(loop)
        elif isinstance(loop, EpochBasedTrainLoop):
            first = loader.begin(runner.epoch, self._batch)
            run_iter = type(loop).run_iter
            # mmengine counts the batches of an epoch from 0, and hooks detect its end by that.
            loop.run_iter = lambda index, batch: run_iter(loop, index + first, batch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the generators, once the first batch is there."""
        if self._generators is not None:
            set_random_states(self._generators)
            self._generators = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Count the batches of the epoch."""
        self._batch = batch_idx + 1

    def after_train_epoch(self, runner: Runner) -> None:
        """Reset the count: the next batch is the first of an epoch."""
        self._batch = 0

    def before_val(self, runner: Runner) -> None:
        """Note the generators' states."""
        self._before_validation = random_states()

    def after_val(self, runner: Runner) -> None:
        """Set the generators to what they were before the validation."""
        if self._before_validation is not None:
            set_random_states(self._before_validation)
            self._before_validation = None


class _BatchesFrom:
    """Replaces the iterator in mmengine's iteration-based loop.

    That loop calls ``skip_iter`` to skip batches that were already used; older versions draw and
    load all of them.
    """

    def __init__(self, loop: Any) -> None:
        self._batches = loop.dataloader.endless(loop.iter)
        self._asked_in_vain = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter

    def skip_iter(self, number: int) -> None:
        """Do nothing: the first batch is already the next one."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._asked_in_vain > 0:
            self._asked_in_vain -= 1
            return None
        return next(self._batches)


def _with_input_size(runner: Runner) -> list[Any]:
    """Return modules that draw a size for their images and keep it for some steps.

    Such as mmdet's ``BatchSyncRandomResize``.
    """
    return [module for module in runner.model.modules() if hasattr(module, '_input_size')]


def _length(runner: Runner) -> int:
    """Return batches of an epoch, in each process."""
    return len(runner.train_dataloader)


def _differences(runner: Runner, resumed: dict[str, Any]) -> Iterator[str]:
    """Yield why the resumed run may differ from an uninterrupted one."""
    if not resumed:
        yield (
            'the checkpoint keeps no states of random generators and no position in the epoch, '
            'which begins with its first batch; it is from an earlier version or another tool'
        )
        return
    before, now = len(resumed['generators']), get_world_size()
    if before != now:
        yield f'{before} process(es) wrote the checkpoint, {now} continue: new random states'
    length = _length(runner)
    if resumed['epoch_length'] != length:
        yield (
            f'an epoch had {resumed["epoch_length"]} batches and now has {length}: they differ'
            + (', and the epoch begins with its first one' if resumed['batch'] else '')
        )
    loader = runner.train_dataloader
    if not isinstance(loader, ResumableLoader):
        yield 'the data set is an iterable one, whose position is not known'
    if len(_with_input_size(runner)) != len(resumed.get('input_sizes', [])):
        yield 'the size to which batches are resized is not kept, and is drawn when it is due'
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    if runner.iter % accumulated:
        yield f'gradients of {runner.iter % accumulated} accumulated batch(es) are lost'
    caches = sorted({type(t).__name__ for t in _transforms(loader.dataset) if _caches(t)})
    if caches:
        yield f'{", ".join(caches)} mix in earlier images, which the workers no longer have'
    if torch.cuda.is_available() and not torch.are_deterministic_algorithms_enabled():
        yield (
            'operators on the GPU may add in a different order each time; '
            '--cfg-options randomness.deterministic=True forbids that'
        )


def _caches(transform: Any) -> bool:
    return hasattr(transform, 'results_cache') and getattr(transform, 'use_cached', True)


def _transforms(dataset: Any) -> Iterator[Any]:
    """Yield every transform in the pipelines of a data set and of those it wraps."""
    pipeline = getattr(dataset, 'pipeline', ())
    yield from getattr(pipeline, 'transforms', pipeline) or ()
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from _transforms(inner)
