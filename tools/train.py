"""Train a detector, segmentor or classifier.

python tools/train.py configs/detection/cascade_overlock_s.py --cfg-options data_root=/data/coco
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from overlock_mm.checkpoint import CheckpointError, check_compatible, read_checkpoint
from overlock_mm.utils.cli import (
    add_common_arguments,
    load_run_config,
    load_tensors_only,
    readable_errors,
)
from overlock_mm.utils.preflight import check_data, check_work_dir, find_checkpoint_to_resume


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Train a model.')
    parser.add_argument('config', help='config file, for example one below configs/')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a training checkpoint; without a name from the newest in the work '
        'directory, or from the beginning if it has none',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision on a GPU; the published runs left it off because of NaNs',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the real batch size',
    )
    return parser.parse_args(argv)


def enable_amp(cfg: Config) -> None:
    """Switch the config to mixed precision."""
    if not torch.cuda.is_available():
        raise ValueError('--amp needs a GPU, and none is visible. Leave it out.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_lr_scaling(cfg: Config) -> None:
    """Switch on mmengine's linear scaling of the learning rate."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ValueError(
            '--auto-scale-lr needs `auto_scale_lr = dict(base_batch_size=...)` in the config: the '
            'batch size for which its learning rate was chosen.'
        )
    cfg.auto_scale_lr.enable = True


def read_training_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint and make sure that a run can go on from it."""
    checkpoint = read_checkpoint(path)
    lacking = [
        key
        for key in ('state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta')
        if key not in checkpoint
    ]
    if lacking:
        raise CheckpointError(
            f'{str(path)!r} cannot be resumed from: it lacks {", ".join(lacking)}. To start from '
            f'its weights alone, use --cfg-options load_from={path}.'
        )
    return checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        cfg = load_run_config(args)
        check_data(cfg, ('train', 'val'))
        check_work_dir(cfg.work_dir)
        if args.amp:
            enable_amp(cfg)
        if args.auto_scale_lr:
            enable_lr_scaling(cfg)
        start = cfg.get('load_from')
        if args.resume is not None:
            start = find_checkpoint_to_resume(cfg.work_dir) if args.resume == 'auto' else args.resume
            cfg.resume = start is not None
            cfg.load_from = str(start) if start is not None else None
        weights = None
        if cfg.get('resume') and start is not None:
            weights = read_training_checkpoint(start)['state_dict']
        elif start is not None:
            weights = read_checkpoint(start)
        runner = Runner.from_cfg(cfg)
        if weights is not None:
            check_compatible(runner.model, weights)
    if args.resume == 'auto' and start is None:
        print_log(f'No checkpoint in {cfg.work_dir}: training starts from the beginning.', 'current')
    runner.train()


if __name__ == '__main__':
    main()
