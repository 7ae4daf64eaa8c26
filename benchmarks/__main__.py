"""``run`` measures operators, ``networks`` whole networks, ``report`` writes the pages."""

import argparse
import logging
import sys

import torch

from benchmarks import network_report, network_run, readme, report, run
from benchmarks.gpu_code import report as gpu_code_report


def main() -> int:
    """Entry point; 1 where a result did not match the reference."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    measuring = commands.add_parser('run', help='measure and store benchmarks/results/*.json')
    measuring.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    measuring.add_argument('--cases', default='', help='regular expression for names of cases')
    measuring.add_argument('--baselines', default='', help='regular expression for their names')
    measuring.add_argument('--budget', type=float, default=1.0, help='seconds per time taken')
    whole = commands.add_parser('networks', help='measure whole networks')
    whole.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    whole.add_argument(
        '--select', default='main', choices=('main', 'all'), help='all adds larger batches'
    )
    whole.add_argument('--cases', default='', help='regular expression for names of cases')
    whole.add_argument('--networks', default='', help='regular expression for their names')
    whole.add_argument(
        '--runtimes', default='', help='regular expression for runtimes beside eager mode, CPU only'
    )
    whole.add_argument(
        '--clock',
        default='wall',
        choices=('wall', 'cpu'),
        help='cpu: time of the processor, where it does other work meanwhile; for one thread',
    )
    whole.add_argument('--budget', type=float, default=40.0, help='seconds per case')
    compiled = commands.add_parser(
        'gpu-code', help='compile the GPU kernels and describe their code; needs no GPU'
    )
    compiled.add_argument('--calls', default='', help='regular expression for names of calls')
    compiled.add_argument(
        '--architectures', type=int, nargs='+', default=[80, 90, 100, 120], help='90 is sm_90'
    )
    compiled.add_argument('--backends', nargs='+', default=['triton'])
    compiled.add_argument(
        '--print',
        action='store_true',
        help='print the tables and leave the stored ones as they are',
    )
    commands.add_parser(
        'report',
        help='write docs/benchmarks.md, docs/networks.md and the tables of README.md from the '
        'stored results',
    )
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    if arguments.command == 'gpu-code':
        from benchmarks.gpu_code import run as gpu_code  # only this command needs Triton

        kernels = gpu_code.run(arguments.architectures, arguments.backends, arguments.calls)
        if arguments.print:
            print(gpu_code_report.tables(kernels))
            return 0
        gpu_code.store(kernels)
    if arguments.command in ('run', 'networks'):
        if arguments.device == 'cuda' and not torch.cuda.is_available():
            parser.error('torch finds no CUDA device; measure with --device cpu.')
        for name in ('mmengine', 'onnxscript', 'onnx_ir', 'overlock_mm'):
            logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.command == 'networks':
        path = network_run.run(
            torch.device(arguments.device),
            arguments.select if arguments.device == 'cpu' else 'all',
            arguments.cases,
            arguments.networks,
            arguments.budget,
            runtimes=arguments.runtimes,
            clock=arguments.clock,
        )
        logging.info('Results in %s', path)
    if arguments.command == 'run':
        path = run.run(
            torch.device(arguments.device), arguments.cases, arguments.budget, arguments.baselines
        )
        logging.info('Results in %s', path)
    pages = (
        report.write(),
        network_report.write(),
        gpu_code_report.write(),
        readme.write(),
    )
    logging.info('Tables in %s', ', '.join(map(str, pages)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
