"""Measure exported files beside PyTorch, on the demo's models: accuracy, time and size.

    make demo && python tools/dev/measure_exports.py

Writes benchmarks/results/exports.json and docs/exports.md, which is made of it. Times are CPU time
of one thread, which other programs on the machine disturb least. `--task` measures one task, and
keeps what the same machine and the same versions have measured of the others.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console

from benchmarks.measure import machine
from overlock_mm import Predictor
from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.preflight import find_checkpoint_to_resume
from overlock_mm.utils.files import replacing, write_json
from tools import test
from tools.deployment import export_onnx
from tools.dev.run_demo import TASKS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results/exports.json'
PAGE = ROOT / 'docs/exports.md'
PRECISIONS = ('fp32', 'fp16', 'int8')
#: Folders below that of the demo: pictures to measure on, and pictures for `--images`.
PICTURES = {
    'classification': ('classes/val/*/*.png', 'classes/train/*/*.png'),
    'segmentation': ('data/ade/images/validation/*.png', 'data/ade/images/training/*.png'),
    'detection': ('data/coco/val2017/*.png', 'data/coco/train2017/*.png'),
}
#: Columns of the page: the key of each metric, and what makes percent of it.
METRICS = {
    'classification': {'top-1': ('accuracy/top1', 1)},
    'segmentation': {'mIoU': ('mIoU', 1)},
    'detection': {'box AP': ('coco/bbox_mAP', 100), 'mask AP': ('coco/segm_mAP', 100)},
}
#: Pictures whose time is taken, after some whose time is not.
TIMED = 40
WARM_UP = 3

console = Console(highlight=False)


def accuracy(task: str, work_dir: Path, model: Path, *options: str) -> dict[str, float]:
    """Metrics of a checkpoint or file by ``tools/test.py``, in percent."""
    data_root = work_dir / TASKS[task].folder / TASKS[task].data_root
    folder = work_dir / 'exports' / task
    config = str(ROOT / TASKS[task].config)
    arguments = [config, str(model), '--work-dir', str(folder), *options]
    metrics = test.main([*arguments, '--cfg-options', f'data_root={data_root}/'])
    percent = {name: metrics[key] * factor for name, (key, factor) in METRICS[task].items()}
    return {name: round(value, 2) for name, value in percent.items()}


def milliseconds(predictor: Predictor, paths: list[Path]) -> float:
    """Median CPU time of a picture."""
    seconds = []
    for path in paths[: WARM_UP + TIMED]:
        start = time.process_time()
        predictor(path)
        seconds.append(time.process_time() - start)
    return round(1000 * statistics.median(seconds[WARM_UP:]), 1)


def measure_task(task: str, work_dir: Path) -> list[dict[str, Any]]:
    """One row for PyTorch and each file."""
    config = str(ROOT / TASKS[task].config)
    checkpoint = str(find_checkpoint_to_resume(work_dir / task))
    paths = sorted(work_dir.glob(PICTURES[task][0]))
    engines = ['onnxruntime']
    if importlib.util.find_spec('openvino') is not None:
        engines.append('openvino')
    weights = read_checkpoint(checkpoint)['state_dict'].values()
    rows = [
        dict(
            runtime='PyTorch',
            precision='fp32',
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
            milliseconds=milliseconds(Predictor(config, checkpoint), paths),
            metrics=accuracy(task, work_dir, Path(checkpoint)),
        )
    ]
    for precision in PRECISIONS:
        out = work_dir / 'exports' / f'{task}_{precision}.onnx'
        options = [] if task == 'classification' else ['--dynamic']
        if precision != 'fp32':
            options += ['--precision', precision, '--images', str(work_dir / PICTURES[task][1])]
        export_onnx.main([config, checkpoint, str(out), *options])
        # OpenVINO also computes the float32 file in bfloat16.
        runs = [(engine, precision) for engine in engines]
        if precision == 'fp32' and 'openvino' in engines:
            runs.append(('openvino', 'bf16'))
        for engine, computed in runs:
            option = 'bf16' if computed == 'bf16' else None
            predictor = Predictor(out, threads=1, engine=engine, precision=option)
            flags = ['--engine', engine, *(['--precision', option] if option else [])]
            row = dict(
                runtime=engine,
                precision=computed,
                bytes=out.stat().st_size,
                milliseconds=milliseconds(predictor, paths),
                metrics=accuracy(task, work_dir, out, *flags),
            )
            rows.append(row)
            console.print(row)
    return rows


def kept_tasks(path: Path, conditions: dict[str, Any]) -> dict[str, Any]:
    """The rows of all tasks in a file of results.

    Raises:
        ValueError: They are from another machine, or of other versions.
    """
    results = json.loads(path.read_text())
    if any(results.get(name) != value for name, value in conditions.items()):
        raise ValueError(
            f'{path} was measured on another machine or with other versions. Measure all tasks: '
            'leave out --task.'
        )
    return results['tasks']


def page_of(results: dict[str, Any]) -> str:
    """The page in Markdown."""
    names = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}
    versions = [f'torch {results["torch"]}', f'ONNX Runtime {results["onnxruntime"]}']
    if results['openvino']:
        versions.append(f'OpenVINO {results["openvino"]}')
    lines = [
        '# Exported files beside PyTorch',
        '',
        f'The models of `make demo` on their validation pictures, {results["date"]}: '
        f'{results["processor"]}, one thread, {", ".join(versions)}.',
        'Times are CPU time for one picture, with reading, resizing and the masks of objects;',
        'PyTorch runs the form that was trained, without folding. Sizes are those of the weights',
        'and of the files. In bf16, OpenVINO computes the float32 file. Generated by',
        '`python tools/dev/measure_exports.py`.',
    ]
    for task, rows in results['tasks'].items():
        metrics = list(rows[0]['metrics'])
        head = ['runtime', 'precision', *metrics, 'ms', 'MiB']
        lines += ['', f'## {TASKS[task].title}', '', f'| {" | ".join(head)} |']
        lines.append('|---|---|' + '---:|' * (len(head) - 2))
        for row in rows:
            cells = [names.get(row['runtime'], row['runtime']), row['precision']]
            cells += [f'{row["metrics"][name]:.1f}' for name in metrics]
            cells += [f'{row["milliseconds"]:.0f}', f'{row["bytes"] / 2**20:.1f}']
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; return the exit status."""
    parser = argparse.ArgumentParser(description='Measure exported files beside PyTorch.')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo')
    parser.add_argument('--task', choices=list(TASKS), help='measure only this one')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    load_tensors_only()
    conditions = {
        'processor': machine(torch.device('cpu'), ())['device'],
        'torch': torch.__version__,
        'onnxruntime': onnxruntime.__version__,
        'openvino': importlib.metadata.version('openvino')
        if importlib.util.find_spec('openvino')
        else None,
    }
    with readable_errors():
        kept = kept_tasks(RESULTS, conditions) if args.task else {}
        for task in [args.task] if args.task else TASKS:
            kept[task] = measure_task(task, args.work_dir)
    tasks = {task: kept[task] for task in TASKS}
    results = {'date': date.today().isoformat(), **conditions, 'tasks': tasks}
    write_json(RESULTS, results)
    with replacing(PAGE) as partial:
        partial.write_text(page_of(json.loads(RESULTS.read_text())))
    console.print(f'{RESULTS}\n{PAGE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
