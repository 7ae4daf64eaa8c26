"""Losses and metrics over time, from the log that mmengine writes beside every run."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlock_mm.utils.files import replacing

_LOG = 'vis_data/scalars.json'
# Metadata and durations of a log line.
_BOOKKEEPING = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory'}
_COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """One number of a run over time.

    Attributes:
        steps: Training iterations done, int64 [N], ascending.
        values: The logged values, float64 [N]; NaN and infinite ones are kept.
        held_out: Whether it was measured on validation data.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    held_out: bool


@dataclass(frozen=True)
class Run:
    """The curves of a training run by the key they are logged under; its work directory's name."""

    name: str
    curves: Mapping[str, Curve]


def read_run(path: str | Path) -> Run:
    """Read the curves of a run.

    A run that was resumed has a log for each of its starts. They are joined in the order of time;
    where a later one repeats steps of an earlier one, the later counts.

    Validation is logged by epoch in epoch-based runs. It stands at the last training step logged
    before it, which is at most one logging interval too early.

    Args:
        path: A work directory, one of its time-stamped folders, or a ``scalars.json``.

    Raises:
        FileNotFoundError: There is no log of a training run at ``path``.
        ValueError: A log is empty or cannot be read as one.
    """
    path = Path(path)
    points: dict[str, dict[int, float]] = {}
    held_out: set[str] = set()
    for log in _find_logs(path):
        records = list(_read_log(log))
        if not records:
            raise ValueError(
                f'{log} is empty: the run ended before its first line. Lines are written every '
                '`default_hooks.logger.interval` iterations.'
            )
        start = next((step for step, trains, _ in records if trains), records[0][0])
        for series in points.values():
            for step in [step for step in series if step >= start]:
                del series[step]
        for step, trains, values in records:
            for key, value in values.items():
                points.setdefault(key, {})[step] = value
                if not trains:
                    held_out.add(key)
    curves = {
        key: Curve(
            np.fromiter(series, np.int64),
            np.fromiter(series.values(), np.float64),
            key in held_out,
        )
        for key, series in points.items()
        if series
    }
    return Run(_name_of(path), curves)


def select_keys(runs: Sequence[Run], patterns: Sequence[str] | None = None) -> list[str]:
    """Return the keys of the runs that fit the patterns, each once, in the order of the patterns.

    Args:
        runs: One or more.
        patterns: Keys, or patterns such as ``coco/*_mAP``. By default the loss and everything
            measured on validation data, except what was never measured (COCO's -1).

    Raises:
        ValueError: There is no run, or a pattern fits no key; the message lists the known ones.
    """
    if not runs:
        raise ValueError('At least one run is needed.')
    curves = [(key, curve) for run in runs for key, curve in run.curves.items()]
    known = list(dict.fromkeys(key for key, _ in curves))
    if patterns is None:
        measured = {key for key, curve in curves if curve.held_out and (curve.values != -1).any()}
        return [key for key in known if key == 'loss' or key in measured]
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = [key for key in known if fnmatchcase(key, pattern)]
        if not matches:
            raise ValueError(f'No run has logged {pattern!r}. Known are: {", ".join(known)}.')
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def smoothed(values: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Return the exponential moving average with bias correction, like TensorBoard.

    Args:
        values: float64 [N]. NaN and infinite ones stay as they are and are left out of the average.
        weight: Weight of the past, from 0 (no smoothing) to below 1.

    Raises:
        ValueError: The weight is out of its range.
    """
    check_smoothing(weight)
    result = values.copy()
    total = norm = 0.0
    for i in np.flatnonzero(np.isfinite(values)):
        total = weight * total + (1 - weight) * values[i]
        norm = weight * norm + (1 - weight)
        result[i] = total / norm
    return result


def check_smoothing(weight: float) -> None:
    """Raise a ValueError unless the weight is at least 0 and below 1."""
    if not 0 <= weight < 1:
        raise ValueError(f'The weight of smoothing must be at least 0 and below 1, got {weight}.')


def plot_curves(
    runs: Sequence[Run],
    path: str | Path,
    keys: Sequence[str] | None = None,
    smooth: float = 0.0,
    titles: Mapping[str, str] | None = None,
) -> list[str]:
    """Draw one panel per key, with all runs over one another, and write the numbers beside it.

    The figure goes to ``path`` and the numbers, never smoothed, to a CSV file of the same name with
    the columns run, key, step and value. Both files are written atomically.

    Args:
        runs: One or more, of different names.
        path: A PNG file; its folder is made.
        keys: Patterns, as for :func:`select_keys`.
        smooth: Weight of the past in training curves (:func:`smoothed`); what was logged stays
            visible, pale.
        titles: What to write above a panel instead of its key.

    Returns:
        The keys drawn.

    Raises:
        ValueError: An argument is out of its range, or two runs have one name.
    """
    path = Path(path)
    if path.suffix != '.png':
        raise ValueError(f'The figure must end in .png, got {str(path)!r}.')
    check_smoothing(smooth)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f'Each run needs a name of its own, got {", ".join(names)}.')
    chosen = select_keys(runs, keys)
    figure = _figure(runs, chosen, smooth, titles or {})
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_suffix('.csv')) as partial:
        partial.write_text(_numbers(runs, chosen))
    with replacing(path) as partial:
        partial.write_bytes(picture.getvalue())
    return chosen


def _figure(
    runs: Sequence[Run], keys: Sequence[str], smooth: float, titles: Mapping[str, str]
) -> Any:
    # Here, as importing the analysis package should not need matplotlib. Without pyplot there is
    # no window system to find and no figure to close.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Four flags for a square.
    columns = 2 if len(keys) == 4 else min(_COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.3), layout='constrained')
    # All plots share the time axis, so a metric with only one or two values appears in its place.
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    for key, axes in zip(keys, grid.flat, strict=False):
        for index, run in enumerate(runs):
            curve = run.curves.get(key)
            if curve is None:
                continue
            colour = f'C{index % 10}'
            values = curve.values
            if smooth and not curve.held_out:
                axes.plot(curve.steps, values, color=colour, alpha=0.25, linewidth=0.8)
                values = smoothed(values, smooth)
            # The measurements are few: without marks a single one would be invisible.
            marker = 'o' if curve.held_out or len(values) == 1 else None
            axes.plot(
                curve.steps, values, color=colour, marker=marker, markersize=4, label=run.name
            )
        axes.set_title(titles.get(key, key))
        axes.set_xlabel('iteration')
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        handles = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=3)
    return figure


def _numbers(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """Return the curves as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['run', 'key', 'step', 'value'])
    for run in runs:
        for key in keys:
            if curve := run.curves.get(key):
                points = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
                writer.writerows([run.name, key, step, value] for step, value in points)
    return text.getvalue()


def _find_logs(path: Path) -> list[Path]:
    """Return the logs of a run, the earliest first."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f'There is no run at {str(path)!r}.')
    # The folders are named by the time of the start.
    logs = sorted([*path.glob(_LOG), *path.glob(f'*/{_LOG}')])
    if not logs:
        raise FileNotFoundError(
            f'{str(path)!r} is not the work directory of a training run: neither it nor a '
            f'time-stamped folder in it holds {_LOG}.'
        )
    return logs


def _name_of(path: Path) -> str:
    """Return the work directory's name, whichever of its parts ``path`` is."""
    folder = path.resolve()
    if folder.is_file():
        folder = folder.parent
    if folder.name == 'vis_data':
        folder = folder.parent
    if (folder / _LOG).is_file():
        # ``path`` is the folder of one start.
        folder = folder.parent
    return folder.name


def _read_log(path: Path) -> Iterator[tuple[int, bool, dict[str, float]]]:
    """Yield each line's finished training iterations, whether it is of training, its numbers."""
    # Iterations done, or None where the validation line contains them.
    done: int | None = None
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith('\n'):
            # The run is writing this line right now, or was killed while it did.
            return
        try:
            record = json.loads(line)
            # Only training lines contain the iteration.
            trains = 'iter' in record
            step = int(record['step'])
            if trains:
                done = step if 'epoch' in record else None
            elif done is not None:
                # Its own step is the epoch.
                step = done
            values = {
                key: float(value)
                for key, value in record.items()
                if key not in _BOOKKEEPING and isinstance(value, int | float)
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'{path}, line {number}, is not a line of a training log ({error!r}).'
            ) from error
        yield step, trains, values
