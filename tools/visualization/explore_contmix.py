r"""Look at the dynamic kernels that ContMix makes for the places of an image.

    python tools/visualization/explore_contmix.py configs/detection/cascade_overlock_s.py \
        work_dirs/.../epoch_36.pth street.jpg --out work_dirs/street.html

writes one HTML page that needs nothing else: click a place, choose block and group, see the two
kernels, the affinities to the 49 regions and where all that lies in the image. With ``--figure``
it draws one place as a still picture instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from overlock_mm.analysis.contmix_kernels import (
    check_blocks,
    check_group,
    check_position,
    contmix_blocks,
    project_contmix,
)
from overlock_mm.analysis.explorer import MAX_PAGE_BYTES, build_page
from overlock_mm.analysis.figures import FIGURE_SUFFIXES, save_figure
from overlock_mm.analysis.kernel_figure import draw_kernels
from overlock_mm.analysis.networks import Network, load_network
from overlock_mm.analysis.pictures import Picture, as_input, read_picture
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.utils.files import replacing

console = Console(highlight=False, soft_wrap=True)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Show the dynamic kernels of ContMix.')
    parser.add_argument('config', help='config file of a model with the backbone OverLoCK')
    parser.add_argument('checkpoint', help='checkpoint file with its weights')
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--out', metavar='FILE.html', help='the page; default: work_dirs/explorer.html'
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='resize the image to this size in pixels; default: its own, at most 512 per side',
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        metavar='NAME',
        help='blocks to show, such as focus3.0 focus4.1; default: all, or as many, spread evenly, '
        f'as fit into a page of {MAX_PAGE_BYTES // 10**6} MB',
    )
    parser.add_argument(
        '--figure',
        metavar='FILE',
        help=f'draw the kernels of --position into this file ({", ".join(FIGURE_SUFFIXES)}), a row '
        'for each block, and write no page unless --out is given, too',
    )
    parser.add_argument(
        '--position',
        type=float,
        nargs=2,
        metavar=('X', 'Y'),
        help='place for --figure, in pixels of the image file',
    )
    parser.add_argument('--group', type=int, default=0, help='group for --figure; default: 0')
    args = parser.parse_args(argv)
    if (args.figure is None) != (args.position is None):
        parser.error('--figure and --position go together')
    if args.out is None and args.figure is None:
        args.out = 'work_dirs/explorer.html'
    return args


def write_page(args: argparse.Namespace, network: Network, picture: Picture) -> None:
    """The page of all places."""
    image = as_input(network.model, picture.pixels)
    height, width = picture.pixels.shape[:2]
    with console.status('Running the network and packing its blocks'):
        projections = project_contmix(network.model, image, args.blocks)
        page, blocks = build_page(
            picture.pixels,
            projections,
            image_name=Path(args.image).name,
            subtitle=f'{network.name}, {Path(args.checkpoint).name}, {Path(args.image).name} at '
            f'{width} × {height} pixels',
            max_bytes=MAX_PAGE_BYTES if args.blocks is None else None,
        )
        with replacing(args.out) as partial:
            partial.write_text(page, encoding='utf-8')
    megabytes = Path(args.out).stat().st_size / 1e6
    console.print(f'Wrote {args.out}: {megabytes:.1f} MB, {len(blocks)} blocks.')
    if len(blocks) < len(projections):
        left_out = ', '.join(block for block in projections if block not in blocks)
        console.print(
            f'Left out to stay below {MAX_PAGE_BYTES / 1e6:.0f} MB: {left_out}. Choose with '
            '--blocks, or make the image smaller with --shape.'
        )


def write_figure(args: argparse.Namespace, network: Network, picture: Picture) -> None:
    """The still picture of one place."""
    image = as_input(network.model, picture.pixels)
    projections = project_contmix(network.model, image, args.blocks)
    position = picture.resized(args.position)
    kernels = [one.at(position) for one in projections.values()]
    save_figure(draw_kernels(picture.pixels, kernels, args.group), args.figure)
    console.print(f'Wrote {args.figure}.')


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the command line asks for."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        if args.out is not None:
            check_output_file(args.out, ('.html', '.htm'))
        if args.figure is not None:
            check_output_file(args.figure, FIGURE_SUFFIXES)
        picture = read_picture(args.image, args.shape and tuple(args.shape))
        if args.position is not None:
            check_position(args.position, picture.file_size)
        network = load_network(args.config, args.checkpoint)
        blocks = args.blocks or list(contmix_blocks(network.model))
        check_blocks(network.model, blocks)
        if args.figure is not None:
            check_group(network.model, blocks, args.group)
        if args.figure is not None:
            write_figure(args, network, picture)
        if args.out is not None:
            write_page(args, network, picture)


if __name__ == '__main__':
    main()
