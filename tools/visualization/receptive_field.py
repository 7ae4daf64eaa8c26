r"""Draw effective receptive fields: networks, outputs and image sizes side by side.

    python tools/visualization/receptive_field.py \
        configs/classification/overlock_t.py overlock_t.pth
    python tools/visualization/receptive_field.py configs/detection/cascade_overlock_s.py s.pth \
        --compare configs/detection/cascade_overlock_t.py t.pth \
        --outputs overview focus4 --sizes 256 512 --images data/coco/val2017

Writes a figure and, beside it, the ratios as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from overlock_mm.analysis.figures import (
    FIGURE_SUFFIXES,
    draw_field,
    figure_style,
    grid,
    mark_square,
    new_figure,
    row_label,
    save_figure,
)
from overlock_mm.analysis.networks import (
    Network,
    check_spatial,
    load_network,
    output_module,
    output_names,
)
from overlock_mm.analysis.receptive_field import (
    SHARES,
    ReceptiveField,
    measure_receptive_field,
    random_images,
    square_images,
)
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.images import find_images
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.models.overlock import MIN_IMAGE_SIZE
from overlock_mm.utils.files import write_json

console = Console(highlight=False)


@dataclass(frozen=True)
class Panel:
    """One field of the figure."""

    network: Network
    trained: bool
    output: str
    size: int
    field: ReceptiveField

    @property
    def title(self) -> str:
        """The network, and whether it has learnt anything."""
        return self.network.name if self.trained else f'{self.network.name}, random weights'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw effective receptive fields.')
    parser.add_argument('config', help='config file of a model with a backbone')
    parser.add_argument(
        'checkpoint', nargs='?', help='weights of the backbone; without them it is untrained'
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        action='append',
        default=[],
        metavar='CONFIG [CHECKPOINT]',
        help='one more network; may be given several times',
    )
    parser.add_argument(
        '--outputs',
        nargs='+',
        metavar='NAME',
        help='outputs to look at: base1, base2, base3, overview, focus3, focus4 of an OverLoCK; '
        'out0, out1, ... or a module of any backbone; default: the last of each backbone',
    )
    parser.add_argument(
        '--sizes', nargs='+', type=int, default=[512], metavar='PIXELS', help='sides of the images'
    )
    parser.add_argument(
        '--images', help='a picture, a folder or a pattern; default: random noise, of --num images'
    )
    parser.add_argument('--num', type=int, default=16, help='largest number of images')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--out',
        default='work_dirs/receptive_field.png',
        metavar='FILE',
        help=f'the figure ({", ".join(FIGURE_SUFFIXES)}); the JSON file lies beside it',
    )
    return parser.parse_args(argv)


def draw(panels: Sequence[Panel], path: str | Path) -> None:
    """A row for each image size, a column for each output of each network."""
    sizes = sorted({panel.size for panel in panels})
    columns = list(dict.fromkeys((panel.title, panel.output) for panel in panels))
    one_network = len({title for title, _ in columns}) == 1
    with figure_style():
        figure = new_figure(2.3 * len(columns) + 0.9, 2.5 * len(sizes) + 0.5)
        if one_network:
            figure.suptitle(f'Effective receptive field of {columns[0][0]}', fontsize=10)
        axes = grid(figure, len(sizes), len(columns))
        for panel in panels:
            row, column = sizes.index(panel.size), columns.index((panel.title, panel.output))
            one = axes[row, column]
            image = draw_field(one, panel.field.scores)
            for share in (0.5, 0.99):
                # Beyond, the frame of the picture is near enough.
                if panel.field.side_ratio(share) < 0.9:
                    mark_square(one, panel.size // 2, panel.field.side(share), f'{share:.0%}')
            if row == 0:
                one.set_title(panel.output if one_network else f'{panel.title}\n{panel.output}')
            if column == 0:
                row_label(one, f'{panel.size} px')
            one.set_xlabel(
                '   '.join(f'{s:.0%}: {panel.field.side_ratio(s):.2f}' for s in (0.2, 0.5, 0.99)),
                fontsize=8,
            )
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=35, pad=0.02)
        bar.set_label('log contribution, relative', fontsize=8)
        bar.set_ticks([0, 0.1, 0.5, 1], labels=['0', '0.1', '0.5', '1'], fontsize=8)
        save_figure(figure, path)


def report(panels: Sequence[Panel], args: argparse.Namespace, count: int) -> dict[str, Any]:
    """Return what the JSON file says."""
    return {
        'images': args.images or 'normal noise',
        'num_images': count,
        'fields': [
            {
                'network': panel.network.name,
                'trained': panel.trained,
                'output': panel.output,
                'size': panel.size,
                'side': {str(share): panel.field.side(share) for share in SHARES},
                'side_ratio': {str(s): round(panel.field.side_ratio(s), 4) for s in SHARES},
            }
            for panel in panels
        ],
    }


def print_table(panels: Sequence[Panel]) -> None:
    """The side ratios."""
    table = Table(title='Side of the square that holds a share of the contribution, / image side')
    for title in ('network', 'output', 'pixels'):
        table.add_column(title)
    for share in SHARES:
        table.add_column(f'{share:.0%}', justify='right')
    for panel in panels:
        ratios = (f'{panel.field.side_ratio(share):.3f}' for share in SHARES)
        table.add_row(panel.title, panel.output, str(panel.size), *ratios)
    console.print(table)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense."""
    if args.num < 1:
        raise ValueError(f'--num must be positive, got {args.num}.')
    if min(args.sizes) < MIN_IMAGE_SIZE:
        raise ValueError(f'--sizes must be at least {MIN_IMAGE_SIZE}, got {min(args.sizes)}.')
    for named in args.compare:
        if len(named) > 2:
            raise ValueError(
                f'--compare takes a config and, if it is trained, its checkpoint; got {named}.'
            )


def default_output(network: Network) -> str:
    """Return the deepest output that the backbone returns or, of an OverLoCK, its last stage."""
    names = output_names(network.backbone)
    return 'focus4' if 'focus4' in names else names[-1]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw as the command line says; return the content of the JSON file."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        check_numbers(args)
        check_output_file(args.out, FIGURE_SUFFIXES)
        paths = find_images(args.images)[: args.num] if args.images else []
        named = [(args.config, args.checkpoint), *((*pair, None)[:2] for pair in args.compare)]
        jobs = []
        for config, checkpoint in named:
            network = load_network(config, checkpoint, backbone_only=True, device=args.device)
            outputs = args.outputs or [default_output(network)]
            probe = next(random_images(1, min(args.sizes), device=args.device))
            check_spatial(network, outputs, probe)
            jobs += [(network, checkpoint is not None, output) for output in outputs]
        count = len(paths) or args.num
        panels = []
        # Within, as a gradient that is not finite or zero is something the user can mend.
        with Progress(console=console, transient=True) as progress:
            for (network, trained, output), size in product(jobs, args.sizes):
                task = progress.add_task(f'{network.name} {output} {size} px', total=count)
                images = (
                    square_images(paths, size, network.model.data_preprocessor)
                    if paths
                    else random_images(count, size, device=args.device)
                )
                module = output_module(network.backbone, output)
                field = measure_receptive_field(
                    network.backbone, module, images, lambda task=task: progress.advance(task)
                )
                panels.append(Panel(network, trained, output, size, field))
    content = report(panels, args, count)
    draw(panels, args.out)
    write_json(Path(args.out).with_suffix('.json'), content)
    print_table(panels)
    console.print(f'{args.out} and {Path(args.out).with_suffix(".json")}')
    return content


if __name__ == '__main__':
    main()
