"""Generate the synthetic data set of shapes.

python tools/dataset_tools/generate_shapes.py data/shapes --num-train 400 --num-val 100
"""

from __future__ import annotations

import argparse
import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from overlock_mm.datasets import write_classification, write_shapes


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Generate the synthetic data set of shapes.')
    parser.add_argument('out', help='folder to write')
    parser.add_argument(
        '--task',
        choices=['scenes', 'classification'],
        default='scenes',
        help='scenes: COCO and ADE20K folders; classification: ImageNet folders',
    )
    parser.add_argument('--num-train', type=int, default=400, metavar='N')
    parser.add_argument('--num-val', type=int, default=100, metavar='N')
    parser.add_argument(
        '--size', type=int, nargs=2, default=[128, 160], metavar=('H', 'W'), help='in pixels'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a data set of other parameters'
    )
    return parser.parse_args()


def main() -> None:
    """Draw the data set, with a progress bar."""
    args = parse_args()
    write = write_shapes if args.task == 'scenes' else write_classification
    columns = TextColumn('drawing'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns) as bar:
            task = bar.add_task('drawing')
            write(
                args.out,
                num_train=args.num_train,
                num_val=args.num_val,
                image_size=tuple(args.size),
                seed=args.seed,
                overwrite=args.overwrite,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
