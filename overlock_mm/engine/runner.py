"""The runner of a config, which names the file behind a data error and resumes exactly."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import RUNNERS
from torch.utils.data import DataLoader, IterableDataset

from overlock_mm.datasets.checks import DataSets, watch_files
from overlock_mm.engine.resumable_loader import ResumableLoader
from overlock_mm.engine.resume_hook import ResumeHook
from overlock_mm.engine.stop_signal_hook import StopSignalHook


class _RunnerOfTools:
    """Mixin that extends a runner class of mmengine."""

    data_sets: DataSets
    resume_hook: ResumeHook
    seed: int
    _train_dataloader: Any

    def build_dataloader(self, dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        trains = dataloader is self._train_dataloader
        if isinstance(dataloader, dict):
            built = self.data_sets.get(dataloader['dataset'])
            if built is not None:
                # mmengine copies the config but not functions, and so not the data set.
                dataloader = dict(dataloader, dataset=dict(type=lambda: built))
        loader = super().build_dataloader(dataloader, *args, **kwargs)  # type: ignore[misc]
        # Here and not in a hook: a loop may start its workers as soon as it has its loader.
        watch_files(loader.dataset)
        if trains and not isinstance(loader.dataset, IterableDataset):
            return ResumableLoader(loader, self.seed, get_rank(), get_world_size())
        return loader

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)  # type: ignore[misc]
        if fn_name == 'before_train_epoch':
            # A hook may have put another pipeline in place (mmdet's PipelineSwitchHook).
            watch_files(self.train_dataloader.dataset)  # type: ignore[attr-defined]

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # Called in every process; mmengine's method acts only in the first.
        self.resume_hook.gather(self)
        super().save_checkpoint(*args, **kwargs)  # type: ignore[misc]


def build_runner(cfg: Config, data_sets: DataSets | None = None) -> Any:
    """Return the runner that ``runner_type`` names, mmengine's ``Runner`` by default.

    Its data sets raise :class:`~overlock_mm.datasets.checks.DataError` at a truncated image or a
    label out of range. A resumed run is identical to an uninterrupted one
    (:class:`~overlock_mm.engine.resume_hook.ResumeHook`), and a signal to stop lets it save first
    (:class:`~overlock_mm.engine.stop_signal_hook.StopSignalHook`). The config stays as it is.

    Args:
        cfg: The full config.
        data_sets: Data sets that were built before; the others are built from the config.
    """
    base = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    hook = ResumeHook()
    members = {'data_sets': data_sets or DataSets(), 'resume_hook': hook}
    extended: Any = type(base.__name__, (_RunnerOfTools, base), members)
    runner = extended.from_cfg(cfg)
    runner.register_hook(hook)
    runner.register_hook(StopSignalHook())
    return runner
