r"""Reproduce the published results: take the authors' weights, test them, and compare.

python tools/reproduce.py --task detection --data-root /data/coco --weights /data/overlock

Each row of the task's metafile with a published result is a run: its file is taken from
``--weights`` or downloaded, converted, tested with the row's config, and compared with the
published value.
``--train`` trains from ImageNet weights with the published schedule instead of testing the authors'
file. ``results.json`` and ``results.md`` in the work directory are written after each row. The same
command continues where it was stopped; rows that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import load

from overlock_mm.checkpoint import CheckpointError, convert_file, read_checkpoint
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.cli.preflight import check_data, check_work_dir
from overlock_mm.datasets.checks import DataError
from overlock_mm.engine.checkpoint_hook import write_with_hash
from overlock_mm.ops.preferences import device_name
from overlock_mm.utils.config import load_config
from overlock_mm.utils.files import replacing, write_json

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
TASKS = ('classification', 'detection', 'segmentation')
#: Name of a metric in the metafiles -> its name in metrics.json, and the factor to percent.
METRICS = {
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
}
#: In percentage points. Published values have one decimal, and kernels of another library round
#: differently; two trainings of one recipe differ by some tenths.
TOLERANCE, TRAINING_TOLERANCE = 0.1, 0.5


@dataclass(frozen=True)
class Row:
    """A published result.

    Attributes:
        name: Name of the model in the metafile.
        config: Path of its config.
        address: Where the authors' file is.
        published: Metric -> value in percent.
        sha256: Hash of the authors' file, where it is known.
    """

    name: str
    config: Path
    address: str
    published: dict[str, float]
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The name of the authors' file."""
        return self.address.rsplit('/', 1)[-1]


@dataclass
class Result:
    """What became of a row; ``error`` says why there is no measurement."""

    name: str
    published: dict[str, float]
    measured: dict[str, float] | None = None
    difference: dict[str, float] | None = None
    agrees: bool | None = None
    error: str | None = None
    seconds: float | None = None
    sha256: str | None = None
    device: str | None = None
    date: str | None = None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Reproduce the published results.')
    parser.add_argument('--task', required=True, choices=TASKS)
    parser.add_argument('--data-root', required=True, help='folder of the data set')
    parser.add_argument(
        '--weights', type=Path, metavar='FOLDER', help="of the authors' files (default: download)"
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/reproduce/TASK')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='names of rows (default: all)')
    parser.add_argument('--train', action='store_true', help='train first, as published')
    parser.add_argument(
        '--processes', type=int, default=1, help='processes of each run, one for each GPU'
    )
    parser.add_argument(
        '--metafile', type=Path, help="table of results (default: this package's, of the task)"
    )
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/reproduce', args.task)
    return args


def published_rows(metafile: Path, only: Sequence[str] | None = None) -> list[Row]:
    """The rows of a metafile that have published results.

    Raises:
        ValueError: ``only`` has a name that is not among them.
    """
    rows = [
        Row(
            name=model['Name'],
            config=ROOT / model['Config'],
            address=model['Converted From']['Weights'],
            published={
                metric: float(value)
                for result in model['Results']
                for metric, value in result['Metrics'].items()
                if metric in METRICS
            },
            sha256=model['Converted From'].get('SHA256'),
        )
        for model in load(metafile)['Models']
        if model.get('Results') and 'Converted From' in model
    ]
    names = [row.name for row in rows]
    if unknown := sorted(set(only or ()) - set(names)):
        raise ValueError(
            f'--only names {", ".join(unknown)}; {metafile} has published results of '
            f'{", ".join(names)}.'
        )
    return [row for row in rows if only is None or row.name in only]


def what_is_missing(rows: Sequence[Row], args: argparse.Namespace) -> dict[str, str]:
    """Name of each row that cannot start, and why. The data are looked at once for each config."""
    missing = {}
    for row in rows:
        try:
            if not row.config.is_file():
                raise FileNotFoundError(f'there is no config {row.config}')
            _find_weights(row, args)
            cfg = load_config(row.config, {'data_root': args.data_root})
            check_data(cfg, ('train', 'val', 'test') if args.train else ('test',))
        except (OSError, ValueError, DataError) as error:
            missing[row.name] = str(error)
    return missing


def _find_weights(row: Row, args: argparse.Namespace) -> str:
    """Path or address of the file that a row starts from."""
    if args.train:
        start = load_config(row.config).model.backbone.get('init_cfg') or {}
        address = start.get('checkpoint')
        if address is None:  # the classifiers start from random weights
            return ''
    else:
        address = row.address
    if args.weights is None:
        request = urllib.request.Request(address, method='HEAD')
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except OSError as error:
            raise OSError(
                f'{address} cannot be reached ({error}). Remedy: download it elsewhere, and give '
                'its folder as --weights.'
            ) from error
        return address
    path = args.weights / address.rsplit('/', 1)[-1]
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing; download it from {address}')
    return str(path)


def run_tool(command: Sequence[str], processes: int, log: Path) -> None:
    """Run train.py or test.py with its output in ``log``.

    Raises:
        RuntimeError: It failed; the message has the end of the output.
    """
    program, *arguments = command
    if processes == 1:
        command = [sys.executable, str(TOOLS / program), *arguments]
    else:
        command = [str(TOOLS / 'torchrun.sh'), str(processes), str(TOOLS / program), *arguments]
    with log.open('a') as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        tail = ' '.join(log.read_text(errors='replace').splitlines()[-3:])
        raise RuntimeError(f'{shlex.join(command[:2])} ended with status {status}: {tail} ({log})')


def converted_weights(row: Row, args: argparse.Namespace, folder: Path) -> tuple[Path, str, Path]:
    """The authors' file as one of ours, its hash, and the config of its form.

    Raises:
        CheckpointError: It is another file than the row's.
    """
    source = _find_weights(row, args)
    if '://' in source:
        path = folder / row.file_name
        if not path.is_file():
            with replacing(path) as unfinished:
                urllib.request.urlretrieve(source, unfinished)
        source = str(path)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if row.sha256 not in (None, digest):
        raise CheckpointError(f'{source} has the SHA-256 {digest}, and not {row.sha256}.')
    content, official, _ = convert_file(read_checkpoint(source), source)
    arch = load_config(row.config).model.backbone.arch
    if official.variant != arch:
        raise CheckpointError(
            f'{source} holds variant {official.variant!r}, and {row.config.name} is of {arch!r}.'
        )
    config = row.config
    if official.deploy:
        config = config.with_name(f'{config.stem}_deploy.py')
    return write_with_hash(content, folder / 'converted.pth'), digest, config


def trained_weights(row: Row, args: argparse.Namespace, folder: Path) -> Path:
    """The last checkpoint of a training as published, which continues if it was stopped."""
    options = ['--cfg-options', f'data_root={args.data_root}']
    if source := _find_weights(row, args):
        options.append(f'model.backbone.init_cfg.checkpoint={source}')
    command = ['train.py', str(row.config), '--work-dir', str(folder / 'train'), '--resume']
    run_tool([*command, *options], args.processes, folder / 'train.log')
    return Path((folder / 'train/last_checkpoint').read_text().strip())


def run_row(row: Row, args: argparse.Namespace) -> Result:
    """Test a row, and compare."""
    folder = args.work_dir / row.name
    folder.mkdir(parents=True, exist_ok=True)
    start, digest, config = time.monotonic(), None, row.config
    if args.train:
        weights = trained_weights(row, args, folder)
    else:
        weights, digest, config = converted_weights(row, args, folder)
    command = ['test.py', str(config), str(weights), '--work-dir', str(folder / 'test')]
    options = ['--cfg-options', f'data_root={args.data_root}']
    run_tool([*command, *options], args.processes, folder / 'test.log')
    metrics = json.loads((folder / 'test/metrics.json').read_text())
    measured = {}
    for name in row.published:
        key, factor = METRICS[name]
        # mmdet reports nothing where nothing was detected.
        measured[name] = round(metrics.get(key, 0.0) * factor, 2)
    difference = {name: round(measured[name] - row.published[name], 2) for name in measured}
    tolerance = TRAINING_TOLERANCE if args.train else TOLERANCE
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    return Result(
        row.name,
        row.published,
        measured,
        difference,
        agrees=all(abs(value) <= tolerance + 1e-9 for value in difference.values()),
        seconds=round(time.monotonic() - start, 1),
        sha256=digest,
        device=f'{args.processes} x {device_name(device)}',
        date=date.today().isoformat(),
    )


def as_markdown(results: Sequence[Result], tolerance: float) -> str:
    """A table of the results."""
    lines = [
        '| model | metric | published | measured | difference | agrees | seconds | device | date |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for r in results:
        for metric, value in r.published.items():
            if r.measured is None or r.difference is None:
                cells = ['not measured', '', r.error or '', '', '', '']
            else:
                agrees = 'yes' if abs(r.difference[metric]) <= tolerance + 1e-9 else '**no**'
                cells = [
                    f'{r.measured[metric]:.2f}',
                    f'{r.difference[metric]:+.2f}',
                    agrees,
                    f'{r.seconds:.0f}',
                    r.device or '',
                    r.date or '',
                ]
            lines.append(' | '.join([f'| {r.name}', metric, f'{value:.1f}', *cells]) + ' |')
    note = f'A measurement agrees if it differs by at most {tolerance} percentage points.'
    return '\n'.join([*lines, '', note, ''])


def reproduce(
    rows: Sequence[Row],
    args: argparse.Namespace,
    run: Callable[[Row, argparse.Namespace], Result] = run_row,
) -> list[Result]:
    """Run the rows that have no result yet; write the tables after each."""
    path = args.work_dir / 'results.json'
    kept = json.loads(path.read_text()) if path.is_file() else {}
    settings = {'train': args.train, 'data_root': str(Path(args.data_root).resolve())}
    if kept and kept['settings'] != settings:
        raise ValueError(
            f'{path} holds results of other settings ({kept["settings"]}). Remedy: another '
            '--work-dir.'
        )
    done = {r['name']: Result(**r) for r in kept.get('results', ()) if r['error'] is None}
    results = []
    tolerance = TRAINING_TOLERANCE if args.train else TOLERANCE
    for number, row in enumerate(rows, 1):
        title = f'{number} of {len(rows)}: {row.name}'
        if row.name in done:
            print(f'{title}: done before')
            results.append(done[row.name])
            continue
        print(title)
        try:
            result = run(row, args)
        except (OSError, ValueError, RuntimeError) as error:  # the other rows are worth their run
            result = Result(row.name, row.published, error=' '.join(str(error).split()))
            print(f'  error: {result.error}')
        results.append(result)
        others = [r for name, r in done.items() if name not in {x.name for x in results}]
        content: dict[str, Any] = {'settings': settings}
        content['results'] = [asdict(r) for r in (*results, *others)]
        write_json(path, content)
        with replacing(path.with_suffix('.md')) as unfinished:
            unfinished.write_text(as_markdown([*results, *others], tolerance))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Reproduce as the command line says; return 1 unless all rows agree."""
    args = parse_args(argv)
    with readable_errors():
        rows = published_rows(
            args.metafile or ROOT / f'configs/{args.task}/metafile.yml', args.only
        )
        check_work_dir(args.work_dir)
        missing = what_is_missing(rows, args)
        for name, reason in missing.items():
            print(f'{name} cannot start: {reason}')
        startable = [row for row in rows if row.name not in missing]
        if not startable:
            raise ValueError('No row can start; the lines above say why.')
        results = reproduce(startable, args)
    print(as_markdown(results, TRAINING_TOLERANCE if args.train else TOLERANCE))
    print(f'Tables: {args.work_dir}/results.md and results.json')
    return 0 if not missing and all(result.agrees for result in results) else 1


if __name__ == '__main__':
    sys.exit(main())
