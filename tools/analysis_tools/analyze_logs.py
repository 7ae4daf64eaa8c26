r"""Draw losses and metrics over time, of one training run or of several over one another.

python tools/analysis_tools/analyze_logs.py work_dirs/cascade_overlock_s \
    work_dirs/cascade_overlock_t --smooth 0.9

The numbers are written beside the figure, as CSV.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from overlock_mm.analysis.curves import check_smoothing, plot_curves, read_run
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.cli.preflight import check_output_file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw losses and metrics over time.')
    parser.add_argument(
        'runs',
        nargs='+',
        type=Path,
        metavar='RUN',
        help='work directory of a training run, a time-stamped folder in it, or a scalars.json',
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help="what to draw, a panel each; patterns such as 'coco/*_mAP' count; default: the loss "
        'and everything measured on validation data',
    )
    parser.add_argument('--out', type=Path, default=Path('curves.png'), metavar='FILE.png')
    parser.add_argument(
        '--smooth',
        type=float,
        default=0.0,
        metavar='WEIGHT',
        help='weight of the past in training curves, from 0 to below 1; default: 0',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[str]:
    """Draw as the command line says; return the keys drawn."""
    args = parse_args(argv)
    with readable_errors():
        check_smoothing(args.smooth)
        check_output_file(args.out, ('.png',))
        runs = [read_run(path) for path in args.runs]
        if len({run.name for run in runs}) < len(runs):
            named = zip(runs, args.runs, strict=True)
            runs = [replace(run, name=str(path)) for run, path in named]
        keys = plot_curves(runs, args.out, args.keys, args.smooth)
    print(f'{", ".join(keys)}\n{args.out} and {args.out.with_suffix(".csv")}')
    return keys


if __name__ == '__main__':
    main()
