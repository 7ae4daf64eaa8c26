"""``run`` measures operators, ``networks`` whole networks, ``report`` writes the pages."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import run, tiers
from benchmarks.cells import Deadline, DeviceLostError

#: What the pages need beyond torch; a machine for measuring may lack it.
FOR_PAGES = ('matplotlib', 'mmengine', 'yaml')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    measuring = commands.add_parser(
        'run',
        help='measure the operators and store benchmarks/results/*.json; needs only torch',
        epilog=tiers.description(),
    )
    measuring.add_argument('--baselines', default='', help='regular expression for their names')
    whole = commands.add_parser(
        'networks', help='measure whole networks', epilog=tiers.description()
    )
    whole.add_argument(
        '--select',
        default='main',
        choices=('main', 'all'),
        help='all adds larger batches; CPU only',
    )
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
    for command, names, budget in (
        (measuring, 'CASE DTYPE', 'time taken; 1, and less in a tier'),
        (
            whole,
            'names of cases',
            'case on a CPU (40), or time taken on a GPU (2, and less in a tier)',
        ),
    ):
        command.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
        command.add_argument('--cases', default='', help=f'regular expression for {names}')
        command.add_argument('--budget', type=float, help=f'seconds per {budget}')
        gpu = command.add_argument_group(
            'on a GPU',
            'Each cell is stored when it is done. A second start resumes where the first one '
            'stopped, as long as device, versions and code are the same; so does `networks` on a '
            'CPU, case by case.',
        )
        gpu.add_argument(
            '--tier', type=int, choices=tuple(tiers.TIERS), help='a selection; see below'
        )
        gpu.add_argument(
            '--limit', type=float, help="seconds for all; else the command's share of the tier's"
        )
        gpu.add_argument('--fresh', action='store_true', help='measure everything again')
    compiled = commands.add_parser(
        'gpu-code', help='compile the GPU kernels and describe their code; needs no GPU'
    )
    compiled.add_argument('--calls', default='', help='regular expression for names of calls')
    compiled.add_argument(
        '--architectures', type=int, nargs='+', default=[80, 90, 100, 120], help='90 is sm_90'
    )
    compiled.add_argument(
        '--backends', nargs='+', choices=('triton', 'cuda'), help='default: cuda where nvcc is'
    )
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 1 where the pages could not be written."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = parser()
    arguments = commands.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    if arguments.command == 'gpu-code' and not _describe_code(arguments):
        return 0
    if arguments.command in ('gpu-code', 'report'):
        return _write_pages(required=True)
    device = torch.device(arguments.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        commands.error('torch finds no CUDA device; measure with --device cpu.')
    fresh_operators = arguments.fresh and arguments.command == 'run'
    if device.type == 'cpu' and (arguments.tier or arguments.limit or fresh_operators):
        commands.error('--tier, --limit and, of run, --fresh are for --device cuda.')
    for name in ('mmengine', 'onnxscript', 'onnx_ir', 'overlock_mm'):
        logging.getLogger(name).setLevel(logging.ERROR)
    deadline = _deadline(arguments)
    measure = _measure_operators if arguments.command == 'run' else _measure_networks
    try:
        path = measure(arguments, device, deadline)
    except DeviceLostError as error:
        _start_again(argv, deadline, error)
    logging.info('Results in %s', path)
    return _write_pages(required=device.type == 'cpu')


def _describe_code(arguments: argparse.Namespace) -> bool:
    """Compile the kernels; whether the result was stored and not only printed."""
    from benchmarks.gpu_code import report as gpu_code_report
    from benchmarks.gpu_code import run as gpu_code

    backends = arguments.backends or gpu_code.default_backends()
    kernels = gpu_code.run(arguments.architectures, backends, arguments.calls)
    if arguments.print:
        print(gpu_code_report.tables(kernels))
        return False
    gpu_code.store(kernels)
    return True


def _deadline(arguments: argparse.Namespace) -> Deadline:
    if arguments.device == 'cpu':
        return Deadline()
    share = tiers.OPERATORS if arguments.command == 'run' else tiers.NETWORKS
    tier = tiers.TIERS.get(arguments.tier)
    return Deadline(arguments.limit or (tier and tier.seconds(share)), tiers.CELL)


def _measure_operators(
    arguments: argparse.Namespace, device: torch.device, deadline: Deadline
) -> Path:
    plan = run.gpu_plan(deadline, arguments.fresh) if device.type == 'cuda' else None
    budget = _budget(arguments, 'operator_budget', 1.0)
    return run.run(
        device, arguments.cases, budget, arguments.baselines, plan=plan, tier=arguments.tier
    )


def _budget(arguments: argparse.Namespace, of_a_tier: str, otherwise: float) -> float:
    if arguments.budget is not None:
        return arguments.budget
    tier = tiers.TIERS.get(arguments.tier)
    return getattr(tier, of_a_tier) if tier else otherwise


def _measure_networks(
    arguments: argparse.Namespace, device: torch.device, deadline: Deadline
) -> Path:
    if device.type == 'cuda':
        from benchmarks import network_gpu

        return network_gpu.run(
            device,
            arguments.cases,
            arguments.networks,
            _budget(arguments, 'network_budget', 2.0),
            deadline,
            tier=arguments.tier,
            fresh=arguments.fresh,
        )
    from benchmarks import network_run

    return network_run.run(
        arguments.select,
        arguments.cases,
        arguments.networks,
        _budget(arguments, '', 40.0),
        runtimes=arguments.runtimes,
        clock=arguments.clock,
        fresh=arguments.fresh,
    )


def _start_again(argv: list[str], deadline: Deadline, error: Exception) -> None:
    """Replace this process by one that resumes; the cell that broke it is stored."""
    logging.error('The card no longer answers this process (%s); a new one resumes.', error)
    argv = [argument for argument in argv if argument != '--fresh']
    left = deadline.left()
    if left is not None:
        argv += ['--limit', f'{left:.0f}']
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, '-m', 'benchmarks', *argv])


def _write_pages(required: bool) -> int:
    missing = [name for name in FOR_PAGES if importlib.util.find_spec(name) is None]
    if missing:
        logging.log(
            logging.ERROR if required else logging.INFO,
            'Pages need %s. To write them: python -m benchmarks report.',
            ', '.join(missing),
        )
        return int(required)
    from benchmarks import network_report, readme, report
    from benchmarks.gpu_code import report as gpu_code_report

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
