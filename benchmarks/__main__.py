"""``python -m benchmarks run`` measures, ``python -m benchmarks report`` writes the tables."""

import argparse
import logging
import sys

import torch

from benchmarks import report, run


def main() -> int:
    """Entry point; 1 where a result did not match the reference."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    measuring = commands.add_parser('run', help='measure and store benchmarks/results/*.json')
    measuring.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    measuring.add_argument('--cases', default='', help='regular expression for names of cases')
    measuring.add_argument('--rivals', default='', help='regular expression for their names')
    measuring.add_argument('--budget', type=float, default=1.0, help='seconds per time taken')
    commands.add_parser('report', help='write docs/benchmarks.md from the stored results')
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    if arguments.command == 'run':
        if arguments.device == 'cuda' and not torch.cuda.is_available():
            parser.error('torch finds no CUDA device; measure with --device cpu.')
        path = run.run(
            torch.device(arguments.device), arguments.cases, arguments.budget, arguments.rivals
        )
        logging.info('Results in %s', path)
    logging.info('Tables in %s', report.write())
    return 0


if __name__ == '__main__':
    sys.exit(main())
