r"""Draw class activation maps: stages and networks side by side, for your own pictures.

    python tools/visualization/activation_maps.py picture.jpg \
        configs/classification/overlock_t.py overlock_t.pth
    python tools/visualization/activation_maps.py pictures/ \
        configs/detection/cascade_overlock_s.py s.pth \
        --compare configs/detection/cascade_overlock_t.py t.pth --stages base3 focus4 --class person

A classifier's predicted class is explained, a segmentor's at the centre of the picture and a
detector's most certain box; --class, --point, --region and --box choose others. Writes a figure for
each picture and activation_maps.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.progress import track

from overlock_mm.analysis.activation_maps import DEFAULT_METHODS, METHODS, activation_map
from overlock_mm.analysis.figures import (
    figure_style,
    grid,
    new_figure,
    overlay,
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
from overlock_mm.analysis.targets import NoTargetError, Question, Target, choose_target
from overlock_mm.analysis.views import View, picture_pipeline, read_view, task_of
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.images import find_images, output_stems
from overlock_mm.cli.preflight import check_out_dir
from overlock_mm.datasets.checks.queries import check_kept_results
from overlock_mm.utils.files import write_json

# ImageNet's size, which every backbone accepts.
PROBE_SIZE = 224
console = Console(highlight=False)


@dataclass(frozen=True)
class Explained:
    """A picture seen by one network; without a target where there is nothing to explain."""

    network: Network
    view: View
    target: Target | None
    reason: str
    maps: dict[str, np.ndarray]

    @property
    def label(self) -> str:
        """The class in words."""
        if self.target is None:
            return self.reason
        classes, label = self.network.classes, self.target.label
        name = classes[label] if label < len(classes) else f'class {label}'
        return f'{name}, {self.target.confidence:.2f}'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw class activation maps.')
    parser.add_argument('input', help='a picture, a folder of pictures or a pattern')
    parser.add_argument('config', help='config file of a classifier, segmentor or detector')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        '--compare',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='one more network; may be given several times',
    )
    parser.add_argument(
        '--stages',
        nargs='+',
        metavar='NAME',
        help='stages to look at: base1, base2, base3, overview, focus3, focus4 of an OverLoCK; '
        'out0, out1, ... or a module of any backbone; default: base3, overview, focus3 and focus4, '
        'or what the backbone returns',
    )
    parser.add_argument(
        '--method',
        choices=METHODS,
        help='default: gradcam for classifiers, layercam, which keeps places apart, for the others',
    )
    parser.add_argument('--class', dest='name', metavar='NAME', help='class, by name or index')
    parser.add_argument(
        '--point', nargs=2, type=float, metavar=('X', 'Y'), help='of a segmentation, in pixels'
    )
    parser.add_argument(
        '--region',
        nargs=4,
        type=float,
        metavar=('X1', 'Y1', 'X2', 'Y2'),
        help='of a segmentation, in pixels',
    )
    parser.add_argument(
        '--box',
        nargs=4,
        type=float,
        metavar=('X1', 'Y1', 'X2', 'Y2'),
        help='the detection nearest to this box, in pixels',
    )
    parser.add_argument('--rank', type=int, help='which detection, 1 being the most certain')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out-dir', default='work_dirs/activation_maps', metavar='FOLDER')
    return parser.parse_args(argv)


def default_stages(network: Network) -> list[str]:
    """Return the deeper stages of an OverLoCK, the returned outputs of another backbone."""
    names = output_names(network.backbone)
    return [name for name in ('base3', 'overview', 'focus3', 'focus4') if name in names] or names


def explain(
    network: Network, view: View, question: Question, stages: Sequence[str], method: str
) -> Explained:
    """One picture by one network."""
    try:
        target = choose_target(network, view, question)
    except NoTargetError as error:
        return Explained(network, view, None, str(error), {})
    maps = {}
    for stage in stages:
        module = output_module(network.backbone, stage)
        heat = activation_map(target.score, module, view.inputs, method)
        maps[stage] = heat[: view.picture.shape[0], : view.picture.shape[1]]
    return Explained(network, view, target, '', maps)


def mark(axes: Axes, target: Target) -> None:
    """Show what is explained."""
    if target.box is not None:
        x1, y1, x2, y2 = target.box
        for width, color in ((2.6, 'black'), (1.2, 'white')):
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width)
            )
    if target.point is not None:
        axes.plot(*target.point, marker='o', markersize=6, color='white', markeredgecolor='black')


def draw(rows: Sequence[Explained], path: Path) -> None:
    """A row for each network: the picture, then a map for each stage."""
    columns = 1 + max(1, *(len(row.maps) for row in rows))
    height, width = rows[0].view.picture.shape[:2]
    with figure_style():
        figure = new_figure(2.2 * columns, (2.2 * height / width + 0.3) * len(rows))
        axes = grid(figure, len(rows), columns)
        for row, line in zip(rows, axes, strict=True):
            line[0].imshow(row.view.picture)
            line[0].set_title(row.label)
            row_label(line[0], row.network.name if len(rows) > 1 else '')
            for one in line[1 + len(row.maps) :]:
                one.set_axis_off()
            for one, (stage, heat) in zip(line[1:], row.maps.items(), strict=False):
                overlay(one, row.view.picture, heat)
                one.set_title(stage if heat.any() else f'{stage} (nothing)')
            if row.target is not None:
                for one in line[: 1 + len(row.maps)]:
                    mark(one, row.target)
        save_figure(figure, path)


def report(row: Explained) -> dict[str, Any]:
    """Return what the JSON file says of one picture and network; places in pixels of the file."""
    entry: dict[str, Any] = {'network': row.network.name}
    if row.target is None:
        return {**entry, 'target': None, 'reason': row.reason}
    scale = row.view.scale or (1.0, 1.0)

    def in_file(coordinates: Sequence[float]) -> list[float]:
        return [round(value / scale[i % 2], 1) for i, value in enumerate(coordinates)]

    target = {'label': row.target.label, 'confidence': round(row.target.confidence, 4)}
    if row.target.label < len(row.network.classes):
        target['class'] = row.network.classes[row.target.label]
    for place in ('box', 'point'):
        if (coordinates := getattr(row.target, place)) is not None:
            target[place] = in_file(coordinates)
    peaks = {}
    for stage, heat in row.maps.items():
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        peaks[stage] = in_file((float(x), float(y))) if heat.any() else None
    return {**entry, 'target': target, 'peaks': peaks}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw as the command line says; return the content of the JSON file."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        question = Question(args.name, args.point, args.region, args.box, args.rank)
        paths = find_images(args.input)
        names = output_stems(paths)
        check_out_dir(args.out_dir)
        jobs = []
        for config, checkpoint in [(args.config, args.checkpoint), *args.compare]:
            network = load_network(config, checkpoint, device=args.device)
            question.check(network)
            check_kept_results(network.cfg.model)
            stages = args.stages or default_stages(network)
            probe = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=args.device)
            check_spatial(network, stages, probe)
            jobs.append((network, stages, picture_pipeline(network)))
        method = args.method or DEFAULT_METHODS[task_of(jobs[0][0].cfg)]
        content: dict[str, Any] = {'method': method, 'pictures': {}}
        # Within, as places outside a picture are only known when it is read.
        for path, name in track(
            list(zip(paths, names, strict=True)), 'Pictures', console=console, transient=True
        ):
            rows = [
                explain(network, read_view(network, pipeline, path), question, stages, method)
                for network, stages, pipeline in jobs
            ]
            draw(rows, Path(args.out_dir, f'{name}.png'))
            content['pictures'][str(path)] = [report(row) for row in rows]
    write_json(Path(args.out_dir, 'activation_maps.json'), content)
    console.print(f'{len(paths)} figures and activation_maps.json in {args.out_dir}')
    return content


if __name__ == '__main__':
    main()
