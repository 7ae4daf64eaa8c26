"""The runner of a config, whose data sets tell what is wrong with a file."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from torch.utils.data import DataLoader

from overlock_mm.datasets.checks import DataSets, watch_files


class _WatchesFiles:
    """What is put before a runner class of mmengine."""

    data_sets: DataSets

    def build_dataloader(self, dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        if isinstance(dataloader, dict):
            built = self.data_sets.get(dataloader['dataset'])
            if built is not None:
                # mmengine copies the config, and a function is not copied: nor is the data set.
                dataloader = dict(dataloader, dataset=dict(type=lambda: built))
        loader = super().build_dataloader(dataloader, *args, **kwargs)  # type: ignore[misc]
        # Here and not in a hook: a loop may start its workers as soon as it has its loader.
        watch_files(loader.dataset)
        return loader


def build_runner(cfg: Config, data_sets: DataSets | None = None) -> Any:
    """The runner that ``runner_type`` names, mmengine's ``Runner`` by default.

    Its data sets raise :class:`~overlock_mm.datasets.checks.DataError` at a truncated image or a
    label out of range. The config stays as it is.

    Args:
        cfg: The full config.
        data_sets: Data sets that were built before; the others are built from the config.
    """
    base = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    members = {'data_sets': data_sets or DataSets()}
    watching: Any = type(base.__name__, (_WatchesFiles, base), members)
    return watching.from_cfg(cfg)
