"""Measure exported files beside PyTorch, on the demo's models: accuracy, time and size.

    make demo && python tools/dev/measure_exports.py

Writes benchmarks/results/exports.json and docs/exports.md, which is made of it. Times are CPU time
of one thread, which other programs on the machine disturb least. `--task` measures one task, and
keeps what the same machine and the same versions have measured of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from rich.console import Console

from benchmarks.measure import machine
from overlock_mm import Predictor
from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.preflight import find_checkpoint_to_resume
from overlock_mm.utils.files import replacing, write_json
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
#: Calls that are not counted.
WARM_UP = 3

console = Console(highlight=False)


def accuracy(task: str, results: Sequence[Any], work_dir: Path) -> dict[str, float]:
    """Metrics of results, in percent."""
    if task == 'classification':
        hits = [result.names[0] == Path(result.source).parent.name for result in results]
        return {'top-1': 100 * sum(hits) / len(hits)}
    if task == 'segmentation':
        return {'mIoU': mean_iou(results)}
    annotations = work_dir / 'data/coco/annotations/instances_val2017.json'
    return {
        name: average_precision(annotations, results, kind)
        for name, kind in (('box AP', 'bbox'), ('mask AP', 'segm'))
    }


def mean_iou(results: Sequence[Any]) -> float:
    """Mean IoU over the classes, as mmseg computes it."""
    count = len(results[0].classes)
    confusion = np.zeros((count, count), np.int64)
    for result in results:
        source = Path(result.source)
        folder = source.parents[2] / 'annotations' / source.parent.name
        # The classes count from 1 in the files; 0 is no class.
        truth = np.asarray(Image.open(folder / source.name)).astype(np.int64) - 1
        known = truth >= 0
        pairs = truth[known] * count + result.label_map[known]
        confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)
    both = confusion.diagonal()
    return float(100 * (both / (confusion.sum(0) + confusion.sum(1) - both)).mean())


def average_precision(annotations: Path, results: Sequence[Any], kind: str) -> float:
    """COCO's AP."""
    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        ids = {image['file_name']: image['id'] for image in truth.dataset['images']}
        categories = tuple(category['id'] for category in truth.dataset['categories'])
        entries = [
            entry
            for result in results
            for entry in result.to_coco(ids[Path(result.source).name], categories)
        ]
        evaluation = COCOeval_faster(truth, truth.loadRes(entries), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(100 * evaluation.stats[0])


def measured(predictor: Predictor, task: str, paths: list[Path], work_dir: Path) -> dict[str, Any]:
    """Accuracy on all pictures, and the median of CPU milliseconds for one."""
    for path in paths[:WARM_UP]:
        predictor(path)
    results, seconds = [], []
    for path in paths:
        start = time.process_time()
        results.append(predictor(path))
        seconds.append(time.process_time() - start)
    figures = {'milliseconds': round(1000 * statistics.median(seconds), 1)}
    metrics = accuracy(task, results, work_dir)
    return {**figures, 'metrics': {name: round(value, 2) for name, value in metrics.items()}}


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
            **measured(Predictor(config, checkpoint), task, paths, work_dir),
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
            figures = measured(predictor, task, paths, work_dir)
            row = dict(runtime=engine, precision=computed, bytes=out.stat().st_size, **figures)
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
