"""Train a detector, segmentor or classifier.

python tools/train.py configs/detection/cascade_overlock_s.py --cfg-options data_root=/data/coco
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import MODELS
from torch import Tensor, nn

from overlock_mm.checkpoint import (
    CheckpointError,
    check_compatible,
    read_checkpoint,
)
from overlock_mm.cli.arguments import (
    add_common_arguments,
    leaves_process_group,
    load_run_config,
    load_tensors_only,
    readable_errors,
    unwrapped,
)
from overlock_mm.cli.preflight import (
    allow_unread_outputs,
    check_classes_of_weights,
    check_constructor,
    check_data,
    check_initial_weights,
    check_sharding,
    check_widths,
    check_work_dir,
    find_checkpoint_to_resume,
)
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.report import log_report
from overlock_mm.engine.runner import build_runner


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
        help='resume from a training checkpoint; without a name, from the newest in the work '
        'directory, or from the beginning if it has none',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision on a GPU; published detectors and segmentors were trained without',
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


def disable_amp_without_gpu(cfg: Config) -> None:
    """Train in full precision where the config asks for mixed precision and no GPU is visible."""
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():
        print('No GPU is visible: training is in full precision, where the config has mixed.')
        cfg.optim_wrapper.type = 'OptimWrapper'
        for setting in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(setting, None)


def enable_lr_scaling(cfg: Config) -> None:
    """Switch on mmengine's linear scaling of the learning rate."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ValueError(
            '--auto-scale-lr needs `auto_scale_lr = dict(base_batch_size=...)` in the config: the '
            'batch size for which its learning rate was chosen.'
        )
    cfg.auto_scale_lr.enable = True


def apply_resume(cfg: Config, resume: str | None) -> None:
    """Put what ``--resume`` asks for into the config."""
    cfg.setdefault('load_from', None)
    cfg.setdefault('resume', False)
    if resume is None and cfg.resume and cfg.load_from is None:
        resume = 'auto'  # as mmengine understands these settings
    if resume == 'auto':
        newest = find_checkpoint_to_resume(cfg.work_dir)
        cfg.resume = newest is not None
        cfg.load_from = None if newest is None else str(newest)
        if newest is None:
            print(f'No checkpoint in {cfg.work_dir}: training starts from the beginning.')
    elif resume is not None:
        cfg.resume = True
        cfg.load_from = resume


def read_starting_checkpoint(cfg: Config) -> dict[str, Any]:
    """Return the checkpoint ``load_from``, after a check whether a run can resume from it.

    A resumed run gets the seed of the previous one: the order of images follows from it, and
    mmengine has fixed that order by the time it reads the checkpoint.
    """
    checkpoint = read_checkpoint(cfg.load_from)
    parts = ('optimizer', 'param_schedulers', 'message_hub')
    lacking = [part for part in parts if part not in checkpoint]
    if cfg.resume and lacking:
        raise CheckpointError(
            f'{cfg.load_from!r} cannot be resumed from: it lacks {", ".join(lacking)}. To start '
            f'only from its weights, use --cfg-options load_from={cfg.load_from}.'
        )
    seed = checkpoint.get('message_hub', {}).get('runtime_info', {}).get('seed')
    if cfg.resume and seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    return checkpoint


def check_starting_weights(model: nn.Module, weights: dict[str, Tensor], cfg: Config) -> None:
    """Demand that the weights fit: all of them to resume, the backbone's to start from them."""
    if not cfg.resume:
        # Heads may differ, in the number of classes for example; the variant may not.
        model = model.backbone
        prefix = 'backbone.'
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    check_compatible(model, weights, cfg.load_from)


@leaves_process_group()
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        cfg = load_run_config(args)
        check_sharding(cfg)
        allow_unread_outputs(cfg)
        check_constructor(cfg)
        check_widths(cfg)
        check_initial_weights(cfg)
        check_work_dir(cfg.work_dir)
        data_sets = check_data(cfg, ('train', 'val'))
        if args.amp:
            enable_amp(cfg)
        disable_amp_without_gpu(cfg)
        if args.auto_scale_lr:
            enable_lr_scaling(cfg)
        apply_resume(cfg, args.resume)
        checkpoint = read_starting_checkpoint(cfg) if cfg.load_from else None
        if checkpoint is not None and cfg.resume:
            check_classes_of_weights(
                (checkpoint.get('meta') or {}).get('dataset_meta') or {}, data_sets, 'train'
            )
        runner = build_runner(cfg, data_sets)
        if is_main_process():
            log_report(data_sets, cfg.work_dir)
        # A FlexibleRunner has the model's settings only, until it trains.
        model = MODELS.build(runner.model) if isinstance(runner.model, dict) else runner.model
        if checkpoint is not None:
            check_starting_weights(unwrapped(model), checkpoint['state_dict'], cfg)
        del model, checkpoint
    # Pretrained weights are fetched before the first step, and images are read.
    with readable_errors((CheckpointError, DataError)):
        runner.train()


if __name__ == '__main__':
    main()
