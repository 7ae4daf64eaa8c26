r"""Show what a config will do: weight decay and rates of its parameters, and its training images.

python tools/analysis_tools/print_recipe.py configs/detection/cascade_overlock_s.py \
    --cfg-options data_root=FOLDER

Prints the groups of parameters and the length of the run, and writes ``learning_rate.png`` and
``samples.png``, training samples with their labels as the network will see them, to the folder
``recipe`` in the work directory. Nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table
from torch import nn

from overlock_mm.analysis.recipe import (
    ParameterGroup,
    SamplesAsSeen,
    learning_rates,
    parameter_groups,
    plot_learning_rates,
)
from overlock_mm.cli.arguments import add_config_arguments, load_run_config, readable_errors
from overlock_mm.cli.preflight import check_data, check_out_dir
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.pictures import draw_samples
from overlock_mm.utils.files import replacing

console = Console(highlight=False, soft_wrap=True)


def natural_number(text: str) -> int:
    """Return a number that an option takes."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'must be a whole number, 0 or more, got {text!r}')
    return int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Show what a config will do.')
    parser.add_argument('config', help='config file, for example one below configs/')
    add_config_arguments(parser)
    parser.add_argument(
        '--samples',
        type=natural_number,
        default=16,
        metavar='N',
        help='number of training images to draw; default: %(default)s, 0 for none',
    )
    parser.add_argument(
        '--processes',
        type=natural_number,
        metavar='N',
        help='of the run; default: as many as make up the batch for which the rate was chosen '
        '(auto_scale_lr.base_batch_size)',
    )
    parser.add_argument(
        '--epoch-length',
        type=natural_number,
        metavar='N',
        help='steps of an epoch, instead of counting images; with --samples 0 no data is needed',
    )
    parser.add_argument('--seed', type=natural_number, default=0, help='of the samples; default: 0')
    parser.set_defaults(launcher='none', local_rank=0)
    return parser.parse_args(argv)


def print_groups(groups: Sequence[ParameterGroup], model: nn.Module) -> None:
    """Print a line for each group, and what is in none."""
    table = Table(title='Parameters')
    for heading in ('rate times', 'weight decay', 'tensors', 'numbers'):
        table.add_column(heading, justify='right')
    table.add_column('such as', overflow='fold')
    for group in groups:
        table.add_row(
            f'{group.lr_mult:g}',
            f'{group.weight_decay:g}',
            f'{len(group.names):,}',
            f'{group.numbers:,}',
            group.names[0],
        )
    console.print(table)
    for decayed in (True, False):
        chosen = [group for group in groups if bool(group.weight_decay) is decayed]
        console.print(
            f'{"With" if decayed else "Without"} weight decay: '
            f'{sum(len(group.names) for group in chosen):,} tensors, '
            f'{sum(group.numbers for group in chosen):,} numbers.'
        )
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if frozen:
        console.print(f'Frozen: {len(frozen):,} tensors.')


def count_processes(cfg: Config) -> int:
    """Return the number of processes with which the batch is that for which the rate was chosen."""
    batch_size = cfg.train_dataloader.batch_size
    return max(1, cfg.get('auto_scale_lr', {}).get('base_batch_size', batch_size) // batch_size)


def count_steps(cfg: Config, images: int, processes: int) -> int:
    """Steps of an epoch, by the rules of mmengine's sampler and torch's loader."""
    loader = cfg.train_dataloader
    share = -(-images // processes)
    if loader.get('drop_last'):
        return share // loader.batch_size
    return -(-share // loader.batch_size)


def main(argv: Sequence[str] | None = None) -> None:
    """Show what the command line asks for."""
    args = parse_args(argv)
    with readable_errors():
        cfg = load_run_config(args)
        folder = Path(cfg.work_dir, 'recipe')
        check_out_dir(folder)
        needs_data = args.samples or not args.epoch_length
        data_sets = check_data(cfg, ('train',)) if needs_data else None
    # The groups are printed below; mmengine would write a line for each parameter.
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    print_groups(parameter_groups(model, cfg.optim_wrapper), model)

    dataset = None if data_sets is None else data_sets.get(cfg.train_dataloader.dataset)
    processes = args.processes or count_processes(cfg)
    length = args.epoch_length or count_steps(cfg, len(dataset), processes)
    rates = learning_rates(cfg, max(1, length))
    peak = int(rates.argmax())
    by_epoch = 'max_epochs' in cfg.train_cfg
    epochs = f'{cfg.train_cfg.max_epochs} epochs of {length:,} steps, ' if by_epoch else ''
    console.print(
        f'{epochs}{len(rates):,} steps in all, each of {processes} x '
        f'{cfg.train_dataloader.batch_size} images (processes x batch size).'
    )
    console.print(
        f'Learning rate: {rates[0]:.4g} at first, {rates[peak]:.4g} in step {peak + 1:,}, '
        f'{rates[-1]:.4g} in the last.'
    )
    plot_learning_rates(rates, length if by_epoch else None, folder / 'learning_rate.png')
    console.print(f'{folder / "learning_rate.png"}: the learning rate over the run')

    if args.samples:
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        indices = np.random.choice(len(dataset), min(args.samples, len(dataset)), replace=False)
        with readable_errors((DataError,)):
            if cfg.default_scope == 'mmpretrain':
                dataset = SamplesAsSeen(dataset, model, indices.tolist())
                indices = np.arange(len(indices))
            picture = draw_samples(dataset, cfg.default_scope, indices.tolist())
        with replacing(folder / 'samples.png') as partial:
            picture.save(partial)
        console.print(f'{folder / "samples.png"}: {len(indices)} training images and their labels')


if __name__ == '__main__':
    main()
