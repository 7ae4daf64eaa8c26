"""The runner of a config, whose data sets tell what is wrong with a file."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from torch.utils.data import DataLoader

from overlock_mm.utils.data_checks import watch_files


class _WatchesFiles:
    """What is put before a runner class of mmengine."""

    def build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super().build_dataloader(*args, **kwargs)  # type: ignore[misc]
        # Here and not in a hook: a loop may start its workers as soon as it has its loader.
        watch_files(loader.dataset)
        return loader


def build_runner(cfg: Config) -> Any:
    """The runner that ``runner_type`` names, mmengine's ``Runner`` by default.

    Its data sets raise :class:`~overlock_mm.utils.data_checks.DataError` at a truncated image or a
    label out of range. The config stays as it is.
    """
    base = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    watching: Any = type(base.__name__, (_WatchesFiles, base), {})
    return watching.from_cfg(cfg)
