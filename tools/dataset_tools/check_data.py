r"""Check the data sets of a config, and draw some samples as the network will see them.

python tools/dataset_tools/check_data.py configs/detection/cascade_overlock_s.py \
    --cfg-options data_root=FOLDER

Prints what tools/train.py prints before a run and writes it to ``data.txt`` in the work directory,
with a picture of samples for each data set, ``data_train.png`` and so on. Ends with status 1 if the
data cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.registry import DefaultScope
from rich.console import Console

from overlock_mm.cli.arguments import (
    add_config_arguments,
    load_run_config,
    readable_errors,
)
from overlock_mm.cli.preflight import check_data, check_work_dir
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.pictures import draw_samples
from overlock_mm.datasets.checks.report import SAMPLE, log_report
from overlock_mm.utils.files import replacing

SPLITS = ('train', 'val', 'test')
console = Console(highlight=False, soft_wrap=True)


def number_or_all(text: str) -> int | None:
    """Return what ``--sample`` takes."""
    if text == 'all':
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a positive number or "all", got {text!r}')
    return int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Check the data sets of a config.')
    parser.add_argument('config', help='config file, for example one below configs/')
    add_config_arguments(parser)
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='which to check; default: all'
    )
    parser.add_argument(
        '--sample',
        type=number_or_all,
        default=SAMPLE,
        metavar='N',
        help='number of files of each data set to decode, or "all"; default: %(default)s',
    )
    parser.add_argument(
        '--pictures',
        type=int,
        default=8,
        metavar='N',
        help='number of samples of each data set to draw; default: %(default)s, 0 for none',
    )
    parser.set_defaults(launcher='none', local_rank=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[str]:
    """Check as the command line says; return the lines of the report."""
    args = parse_args(argv)
    with readable_errors():
        cfg = load_run_config(args)
        check_work_dir(cfg.work_dir)
        data_sets = check_data(cfg, args.splits, args.sample)
    log_report(data_sets, cfg.work_dir)
    drawn = []
    for split in args.splits if args.pictures > 0 else ():
        loader = cfg.get(f'{split}_dataloader')
        # Validation and test are often the same.
        if loader is None or loader.dataset in drawn:
            continue
        drawn.append(loader.dataset)
        dataset = data_sets.get(loader.dataset)
        indices = np.linspace(0, len(dataset) - 1, min(args.pictures, len(dataset)))
        np.random.seed(0)
        with (
            readable_errors((DataError,)),
            DefaultScope.overwrite_default_scope(cfg.default_scope),
        ):
            picture = draw_samples(dataset, cfg.default_scope, indices.round().astype(int).tolist())
        path = Path(cfg.work_dir, f'data_{split}.png')
        with replacing(path) as partial:
            picture.save(partial)
        console.print(f'{path}: {len(indices)} samples as the network will see them')
    console.print(f'Report: {Path(cfg.work_dir, "data.txt")}')
    return data_sets.lines


if __name__ == '__main__':
    main()
