"""Train and test the demo's models, on two CPU cores and without a download.

Generates the synthetic data set, trains small models of ``configs/demo`` (a classifier, an UperNet
and a Cascade Mask R-CNN) from random weights, tests them before and after through ``tools/test.py``
in processes of their own, prints a table for each, and writes ``results.json``, and for each task
``curves.png`` and pictures of predictions.

    python tools/dev/run_demo.py --work-dir work_dirs/demo
    python tools/dev/run_demo.py --tasks segmentation classification
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table

from overlock_mm.analysis import plot_curves, read_run
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.cli.preflight import check_work_dir
from overlock_mm.datasets import write_classification, write_shapes
from overlock_mm.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]
TAIL_LINES = 30
# Most rates, windows and schedules were chosen on other pictures. Some of the classifier's were
# compared on these too, and its auxiliary minimum was set after results on them.
SEED = 1

console = Console(highlight=False)


@dataclass(frozen=True)
class Metric:
    """A number of ``metrics.json``, what to call it, and what it must reach after training.

    The libraries give some as fractions and some in percent; ``minimum`` is in the same unit.
    """

    key: str
    title: str
    minimum: float | None = None


@dataclass(frozen=True)
class Task:
    """One run of the demo.

    Args:
        name: Name of its folder and of its entry in ``results.json``.
        title: What is trained.
        config: The model's config.
        draw: Writes the data set.
        folder: Folder of the data set; tasks that share a data set share it.
        data_root: The config's ``data_root``, below ``folder``.
        num_train: Number of training pictures.
        num_val: Number of held-out pictures.
        losses: Keys of the training log, to draw over time before the metrics.
        metrics: Metrics to show.
        seconds: How long training takes on two cores, roughly.
    """

    name: str
    title: str
    config: str
    draw: Callable[..., bool]
    folder: str
    data_root: str
    num_train: int
    num_val: int
    losses: tuple[str, ...]
    metrics: tuple[Metric, ...]
    seconds: int


TASKS = {
    task.name: task
    for task in (
        Task(
            name='segmentation',
            title='UperNet',
            config='configs/demo/upernet_overlock_shapes.py',
            draw=write_shapes,
            folder='data',
            data_root='ade/',
            num_train=300,
            num_val=80,
            losses=('loss', 'decode.loss_ce', 'aux.loss_ce'),
            metrics=(
                # Five times the most that random weights gave, which was 9.
                Metric('mIoU', 'mIoU (%)', minimum=45.0),
                Metric('aAcc', 'pixel accuracy (%)'),
            ),
            seconds=130,
        ),
        Task(
            name='classification',
            title='Classifier with both heads',
            config='configs/demo/classifier_overlock_shapes.py',
            draw=write_classification,
            folder='classes',
            data_root='',
            num_train=1500,
            num_val=200,
            losses=('loss', 'loss_aux'),
            metrics=(
                # Chance level is 20. The auxiliary head learns more slowly, from a smaller loss.
                Metric('accuracy/top1', 'main head top-1 (%)', minimum=90.0),
                Metric('auxiliary/top1', 'auxiliary head top-1 (%)', minimum=60.0),
            ),
            seconds=150,
        ),
        Task(
            name='detection',
            title='Cascade Mask R-CNN',
            config='configs/demo/cascade_overlock_shapes.py',
            draw=write_shapes,
            folder='data',
            data_root='coco/',
            num_train=300,
            num_val=80,
            losses=('loss', 'loss_rpn_cls', 's2.loss_cls', 's2.loss_bbox', 's2.loss_mask'),
            metrics=(
                Metric('coco/bbox_mAP', 'box AP'),
                Metric('coco/bbox_mAP_50', 'box AP50', minimum=0.70),
                Metric('coco/segm_mAP', 'mask AP'),
                Metric('coco/segm_mAP_50', 'mask AP50', minimum=0.65),
            ),
            seconds=400,
        ),
    )
}


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step and report how long it took."""
    console.print(f'[bold]{title}[/bold]')
    start = time.monotonic()
    yield
    console.print(f'  done in {time.monotonic() - start:.0f} s')


def run_tool(arguments: Sequence[str], log: Path) -> None:
    """Run one of the tools in a process of its own; its output goes to ``log``, progress here.

    Raises:
        RuntimeError: It failed; the message holds the end of its output.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    command = [sys.executable, *arguments]
    with (
        log.open('w') as file,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            if progress := training_progress(line):
                console.print(f'  {progress}')
    if process.returncode:
        raise RuntimeError(
            f'{" ".join(arguments)} failed with status {process.returncode}. Its output is in '
            f'{log} and ends with:\n{"".join(tail)}'
        )


def training_progress(line: str) -> str | None:
    """Return what to show of a line of mmengine's training log, if it is one."""
    match = re.search(
        r'(?:Epoch|Iter)\(train\) +(?:\[(?P<epoch>\d+)\])?\[ *(?P<step>\d+)/ *(?P<steps>\d+)\].*?'
        r'eta: (?P<eta>[\d:]+).*? loss: (?P<loss>[\d.]+)',
        line,
    )
    if match is None or int(match['step']) % 50:
        return None
    epoch = f'epoch {match["epoch"]}, ' if match['epoch'] else ''
    return (
        f'{epoch}step {match["step"]} of {match["steps"]}: '
        f'loss {float(match["loss"]):.2f}, {match["eta"]} to go'
    )


def save_untrained(config: Path, path: Path) -> None:
    """Write the weights from which training starts, as a checkpoint for ``tools/test.py``."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)


def test(task: Task, checkpoint: Path, folder: Path, *options: str) -> dict[str, float]:
    """Metrics of a checkpoint, from ``tools/test.py`` in a process of its own."""
    arguments = ['tools/test.py', task.config, str(checkpoint), '--work-dir', str(folder)]
    run_tool([*arguments, *options], folder / 'test.log')
    return json.loads((folder / 'metrics.json').read_text())


def run_task(task: Task, work_dir: Path) -> dict[str, Any]:
    """Draw, test, train and test again; return the figures."""
    folder = work_dir / task.name
    for part in ('untrained', 'trained'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    data = work_dir / task.folder
    options = ('--cfg-options', f'data_root={data / task.data_root}/')

    with step(f'Drawing {task.num_train} + {task.num_val} images (about 30 s)'):
        # Data drawn by an earlier version is replaced; a folder with other files is refused.
        task.draw(data, num_train=task.num_train, num_val=task.num_val, seed=SEED, overwrite=True)
    with step('Testing the untrained network (less than 1 min)'):
        untrained = folder / 'untrained' / 'untrained.pth'
        save_untrained(ROOT / task.config, untrained)
        before = test(task, untrained, folder / 'untrained', *options)
    start = time.monotonic()
    with step(f'Training (about {task.seconds / 60:.0f} min on two cores)'):
        run_tool(
            ['tools/train.py', task.config, '--work-dir', str(folder), *options],
            folder / 'train.log',
        )
    seconds = time.monotonic() - start
    with step('Testing the trained network, drawing its predictions (less than 1 min)'):
        trained = Path((folder / 'last_checkpoint').read_text().strip())
        pictures = folder / 'pictures'
        after = test(task, trained, folder / 'trained', '--show-dir', str(pictures), *options)
    curves = folder / 'curves.png'
    plot_curves(
        [read_run(folder)],
        curves,
        [*task.losses, *(metric.key for metric in task.metrics)],
        titles={metric.key: metric.title for metric in task.metrics},
    )
    return {
        'config': task.config,
        'checkpoint': str(trained),
        'pictures': str(pictures),
        'curves': str(curves),
        'training_seconds': round(seconds, 1),
        'metrics': {
            # mmdet reports nothing if nothing was detected.
            m.key: {
                'untrained': before.get(m.key, 0.0),
                'trained': after.get(m.key, 0.0),
                'minimum': m.minimum,
            }
            for m in task.metrics
        },
    }


def missed(task: Task, figures: dict[str, Any]) -> list[str]:
    """Sentences about the figures that fell short."""
    values = figures['metrics']
    return [
        f'{m.title} is {values[m.key]["trained"]:.3f} and should be at least {m.minimum:.2f}.'
        for m in task.metrics
        if m.minimum is not None and values[m.key]['trained'] < m.minimum
    ]


def print_results(task: Task, figures: dict[str, Any]) -> None:
    """Before and after, side by side, and where the pictures are."""
    table = Table(title=f'{task.title}, small OverLoCK, {task.num_val} held-out images')
    table.add_column('')
    for column in ('untrained', 'trained', 'at least'):
        table.add_column(column, justify='right')
    for metric in task.metrics:
        values = figures['metrics'][metric.key]
        minimum = '' if metric.minimum is None else f'{metric.minimum:.2f}'
        table.add_row(
            metric.title, f'{values["untrained"]:.3f}', f'{values["trained"]:.3f}', minimum
        )
    console.print(table)
    console.print(f'Pictures of predictions: {figures["pictures"]}')
    console.print(f'Losses and metrics over time: {figures["curves"]}')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description='Train and test small models on drawn images.')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument(
        '--tasks',
        nargs='+',
        choices=list(TASKS),
        default=list(TASKS),
        metavar='TASK',
        help=f'tasks to run, of {", ".join(TASKS)}; default: all',
    )
    args = parser.parse_args(argv)
    work_dir = args.work_dir.absolute()
    tasks = [TASKS[name] for name in args.tasks]
    start = time.monotonic()
    figures = {}
    # mmengine would log a thousand lines about what this process builds and draws.
    MMLogger.get_instance('overlock_mm demo', log_level='WARNING')
    with readable_errors():
        check_work_dir(work_dir)
        try:
            for task in tasks:
                console.print(f'[bold]{task.title}[/bold]')
                figures[task.name] = run_task(task, work_dir)
                print_results(task, figures[task.name])
        except RuntimeError as error:
            console.print(f'error: {error}', style='red', markup=False)
            return 1
    results = {
        'date': date.today().isoformat(),
        'machine': f'{os.cpu_count()} CPU cores ({platform.machine()})',
        'torch': torch.__version__,
        'total_seconds': round(time.monotonic() - start, 1),
        **figures,
    }
    write_json(work_dir / 'results.json', results)
    console.print(f'Figures: {work_dir / "results.json"}')
    console.print(f'{results["total_seconds"]:.0f} s in all.')
    shortfalls = [sentence for task in tasks for sentence in missed(task, figures[task.name])]
    for sentence in shortfalls:
        console.print(sentence, style='red')
    return 1 if shortfalls else 0


if __name__ == '__main__':
    sys.exit(main())
