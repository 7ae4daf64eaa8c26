"""Checkpoints that survive a killed run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from overlock_mm.utils.files import replacing

ATOMIC_BACKEND = 'overlock_atomic'
#: Checkpoint of a run that was signalled to stop; the next one replaces it.
INTERRUPTED = 'interrupted.pth'
_HASH_DIGITS = 8


# Registering twice happens when a tool reloads this module; the class is the same.
@register_backend(ATOMIC_BACKEND, force=True)
class AtomicLocalBackend(LocalBackend):
    """Local files, written atomically by :func:`overlock_mm.utils.files.replacing`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath``, creating its folder where needed."""
        with replacing(filepath) as partial:
            partial.write_bytes(obj)


def write_with_hash(content: dict[str, Any], target: Path) -> Path:
    """Save a checkpoint atomically, under a name that ends in its SHA-256.

    Returns:
        The path: ``<stem of target>-<first 8 digits>.pth``.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = target.with_name(f'{target.stem}-{digest[:_HASH_DIGITS]}{target.suffix}')
    AtomicLocalBackend().put(data, path)
    return path


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against a kill or a full disk at any moment.

    It differs in three ways: a checkpoint is written beside its final name and renamed when
    complete; an outdated one is removed only after its successor is on the disk; and a validation
    without the metric that ``save_best`` names is a warning and not the end of the run.

    Args:
        backend_args: Storage of the checkpoints as in the parent; None is the local disk.
        **kwargs: Everything else of ``CheckpointHook``.
    """

    file_backend: Any

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        if backend_args is None:
            backend_args = dict(backend=ATOMIC_BACKEND)
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_afterwards():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        wanted = getattr(self, 'key_indicators', None) or ()
        lacking = [key for key in wanted if key != 'auto' and key not in metrics]
        if lacking:
            runner.logger.warning(
                f'No best checkpoint is chosen: this validation gave no {", ".join(lacking)}, only '
                f"{', '.join(metrics)}. If that is another metric's name, set "
                'default_hooks.checkpoint.save_best to it, or to None.'
            )
            return
        with self._removing_afterwards():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_afterwards(self) -> Iterator[None]:
        """Hold back the parent's removals until the block has ended without an error."""
        backend = self.file_backend
        held_back = _HeldBackRemovals(backend)
        self.file_backend = held_back
        try:
            yield
        finally:
            self.file_backend = backend
        # The same epoch saved again after a resume: its old path is the new file.
        current = {self.last_ckpt, getattr(self, 'best_ckpt_path', None)}
        current.update(getattr(self, 'best_ckpt_path_dict', {}).values())
        for path in held_back.paths:
            if path not in current:
                backend.remove(path)


class _HeldBackRemovals:
    """A storage backend whose ``remove`` only takes notes."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, filepath: str) -> None:
        self.paths.append(filepath)
