r"""Count the bytes that a config's backbone keeps for its backward pass, by kind of module.

python tools/analysis_tools/get_activation_memory.py configs/detection/mask_rcnn_overlock_t_1x.py \
    --shape 800 1280
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table

from overlock_mm.analysis import ActivationMemory, measure_activation_memory
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.models.overlock import MIN_IMAGE_SIZE
from overlock_mm.utils.config import load_config

NOTES = """\
What the forward pass of the backbone in training leaves in memory until the backward pass, in
float32: every storage once, without parameters and buffers. The module is the one that kept it
first. Not counted: the heads, whose share depends on the number of objects, and what the passes
need for a moment."""


def print_table(kept: ActivationMemory, shape: tuple[int, int], batch_size: int) -> None:
    """Bytes by module, largest first, and their sum."""
    images = 'one image' if batch_size == 1 else f'{batch_size} images'
    table = Table(title=f'{images} of {shape[0]} x {shape[1]} pixels', show_footer=True)
    table.add_column('module', footer='total')
    table.add_column('MB', justify='right', footer=f'{kept.total / 1e6:.1f}')
    for name, size in kept.by_module.items():
        table.add_row(name, f'{size / 1e6:.1f}')
    Console(highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> ActivationMemory:
    """Count as the command line says; return the counts."""
    parser = argparse.ArgumentParser(description='Count bytes kept for the backward pass.')
    parser.add_argument('config')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='in pixels'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images; default: 1')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change settings of the config, for example model.backbone.with_cp=True',
    )
    args = parser.parse_args(argv)
    shape = tuple(args.shape)
    with readable_errors():
        cfg = load_config(args.config, args.cfg_options)
        # Batch norms in training need more than one value per channel at stride 32.
        if min(shape) < 2 * MIN_IMAGE_SIZE:
            raise ValueError(
                f'--shape must be at least {2 * MIN_IMAGE_SIZE} x {2 * MIN_IMAGE_SIZE} in '
                f'training, got {shape[0]} x {shape[1]}.'
            )
        if args.batch_size < 1:
            raise ValueError(f'--batch-size must be at least 1, got {args.batch_size}.')
        init_default_scope(cfg.default_scope)
        backbone = MODELS.build(cfg.model.backbone)
        if backbone.form != 'training':
            raise ValueError(
                f'{args.config} is in {backbone.form} form, which is not trained. '
                'Remedy: name the config of the training form.'
            )
        kept = measure_activation_memory(
            backbone, lambda net, images: net(images), shape, args.batch_size
        )
    print_table(kept, shape, args.batch_size)
    print(NOTES)
    return kept


if __name__ == '__main__':
    main()
