"""Regenerate docs/gallery.md: run its commands on the demo's models, shrink the pictures, write it.

    make demo && make gallery

An entry of the gallery is a row of ``ENTRIES``: what to say, which pictures to take and the command
that makes them, which is shown under them as it was run.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from overlock_mm.cli.arguments import readable_errors
from overlock_mm.cli.preflight import check_out_dir, find_checkpoint_to_resume
from overlock_mm.utils.files import replacing

ROOT = Path(__file__).resolve().parents[2]
MAX_WIDTH = 1200
MAX_BYTES = 150_000
# Space between pictures side by side, in pixels.
GAP = 12
TAIL_LINES = 20

console = Console(highlight=False)


@dataclass(frozen=True)
class Entry:
    """One picture of the gallery.

    Words in braces of ``command`` and ``pictures`` are filled in: a task stands for the config and
    the checkpoint of its trained model (``{detection}``), ``{detection_run}`` for the folder of its
    run; ``{scenes}`` and ``{shapes}`` for the folders of held-out pictures; ``{out}`` for a folder
    of the entry's own.

    Args:
        name: Name of the picture's file.
        title: Heading.
        text: Description of the picture.
        command: Command line, without ``python tools/``.
        pictures: The files that the command writes and the gallery shows, side by side.
    """

    name: str
    title: str
    text: str
    command: str
    pictures: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """The tasks whose models the command needs."""
        return [task for task in TASKS if f'{{{task}' in self.command]


#: Config of each task, as trained by ``tools/dev/run_demo.py``.
TASKS = {
    'detection': 'configs/demo/cascade_overlock_shapes.py',
    'segmentation': 'configs/demo/upernet_overlock_shapes.py',
    'classification': 'configs/demo/classifier_overlock_shapes.py',
}

ENTRIES = (
    Entry(
        'detection',
        'Instance segmentation',
        'A small Cascade Mask R-CNN on held-out pictures. `predictions.json`, beside the pictures, '
        'holds the same predictions as numbers.',
        "visualization/demo.py '{scenes}/00000000000[1-3].png' {detection} --score-thr 0.5 "
        '--out-dir {out}',
        ('{out}/000000000001.png', '{out}/000000000002.png', '{out}/000000000003.png'),
    ),
    Entry(
        'segmentation',
        'Semantic segmentation',
        'A small UperNet on the same pictures.',
        "visualization/demo.py '{scenes}/00000000000[1-3].png' {segmentation} --out-dir {out}",
        ('{out}/000000000001.png', '{out}/000000000002.png', '{out}/000000000003.png'),
    ),
    Entry(
        'classification',
        'Classification',
        'A small classifier on single shapes.',
        "visualization/demo.py '{shapes}/*/00000000000[1-5].png' {classification} --out-dir {out}",
        ('{out}/*.png',),
    ),
    Entry(
        'receptive_field',
        'Effective receptive fields of the stages',
        'How much each pixel contributes to the central position of each stage of the detector, '
        'averaged over 16 pictures. The numbers below are the sides of the squares that hold these '
        'shares of the total, relative to the side of the picture.',
        'visualization/receptive_field.py {detection} --images {scenes} --num 16 --sizes 128 256 '
        '--outputs base3 overview focus3 focus4 --out {out}/receptive_field.png',
        ('{out}/receptive_field.png',),
    ),
    Entry(
        'receptive_field_tasks',
        'Effective receptive fields of three tasks',
        'The last stage of three small networks, trained for three tasks, on the same pictures.',
        'visualization/receptive_field.py {detection} --compare {segmentation} '
        '--compare {classification} --images {scenes} --num 16 --sizes 192 '
        '--out {out}/receptive_field.png',
        ('{out}/receptive_field.png',),
    ),
    Entry(
        'activation_class',
        'Why this class?',
        'Grad-CAM for the class that the classifier predicts, in the two stages of Focus-Net.',
        "visualization/activation_maps.py '{shapes}/*/00000000000[34].png' {classification} "
        '--stages focus3 focus4 --out-dir {out}',
        ('{out}/000000000003.png', '{out}/000000000004.png'),
    ),
    Entry(
        'activation_box',
        'Why this box?',
        'LayerCAM for the ring with the highest score: the parts of the map of each stage that '
        'support this box.',
        'visualization/activation_maps.py {scenes}/000000000002.png {detection} --class ring '
        '--out-dir {out}',
        ('{out}/000000000002.png',),
    ),
    Entry(
        'activation_point',
        'Why this pixel?',
        'LayerCAM for the class that the segmentor assigns to the marked pixel.',
        'visualization/activation_maps.py {scenes}/000000000003.png {segmentation} --point 107 97 '
        '--out-dir {out}',
        ('{out}/000000000003.png',),
    ),
    Entry(
        'contmix_kernels',
        'Dynamic kernels of ContMix',
        'The two dynamic kernels at one position, its affinity to the 49 regions, and their places '
        'in the picture. Without `--figure` and `--position`, the command writes a page on which '
        'any position can be selected.',
        'visualization/explore_contmix.py {detection} {scenes}/000000000002.png '
        '--blocks focus3.1 focus4.0 --position 90 48 --figure {out}/kernels.png',
        ('{out}/kernels.png',),
    ),
    Entry(
        'curves',
        'Training curves',
        'Losses and metrics of the classifier over time.',
        'analysis_tools/analyze_logs.py {classification_run} --smooth 0.8 --out {out}/curves.png',
        ('{out}/curves.png',),
    ),
)


def trained_models(work_dir: Path, entries: Sequence[Entry]) -> dict[str, Path]:
    """Return the newest checkpoint of each task that the entries need.

    Raises:
        FileNotFoundError: Models are missing; the message says how to train them.
    """
    tasks = [task for task in TASKS if any(task in entry.tasks for entry in entries)]
    checkpoints = {task: find_checkpoint_to_resume(work_dir / task) for task in tasks}
    missing = [task for task, path in checkpoints.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f'There are no trained models for {", ".join(missing)} in {work_dir}. Train them with '
            f'`make demo`, or with python tools/dev/run_demo.py --work-dir {work_dir} --tasks '
            f'{" ".join(missing)}.'
        )
    return {task: path for task, path in checkpoints.items() if path is not None}


def fillings(work_dir: Path, models: Mapping[str, Path]) -> dict[str, str]:
    """Return what stands for the words in braces, apart from ``{out}``."""
    words = {
        'scenes': str(work_dir / 'data/coco/val2017'),
        'shapes': str(work_dir / 'classes/val'),
    }
    for task, checkpoint in models.items():
        words[task] = f'{TASKS[task]} {work_dir / task / checkpoint.name}'
        words[f'{task}_run'] = str(work_dir / task)
    return words


def run(entry: Entry, words: Mapping[str, str], out: Path) -> str:
    """Run an entry's command from the root of the repository; return it as shown.

    Raises:
        RuntimeError: It failed; the message holds the end of its output.
    """
    command = entry.command.format(**words, out=out)
    script, *arguments = shlex.split(command)
    result = subprocess.run(
        [sys.executable, f'tools/{script}', *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        tail = '\n'.join(result.stdout.splitlines()[-TAIL_LINES:])
        raise RuntimeError(f'python tools/{command} failed:\n{tail}')
    return f'python tools/{command}'


def side_by_side(paths: Sequence[Path]) -> Image.Image:
    """Pictures in a row, on white, all as high as the first."""
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(picture.convert('RGB'))
    height = pictures[0].height
    pictures = [
        picture.resize((round(picture.width * height / picture.height), height), Image.LANCZOS)
        for picture in pictures
    ]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row = Image.new('RGB', (width, height), 'white')
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def banner(pictures: Path) -> Image.Image:
    """Return the README's picture, from two of the gallery: kernels and detections."""
    with Image.open(pictures / 'contmix_kernels.jpg') as file:
        kernels = file.convert('RGB')
    with Image.open(pictures / 'detection.jpg') as file:
        detections = file.convert('RGB')
    # The second of three images, of the same scene as the kernels.
    width, height = detections.size
    one = detections.crop((round(width / 3) + GAP // 3, 0, round(width * 2 / 3) - GAP // 3, height))
    one = one.resize((round(one.width * kernels.height / height), kernels.height), Image.LANCZOS)
    row = Image.new('RGB', (kernels.width + 2 * GAP + one.width, kernels.height), 'white')
    row.paste(kernels, (0, 0))
    row.paste(one, (kernels.width + 2 * GAP, 0))
    return row


def save_small(picture: Image.Image, path: Path) -> None:
    """Write a JPEG, no wider than ``MAX_WIDTH`` and no larger than ``MAX_BYTES``."""
    if picture.width > MAX_WIDTH:
        height = round(picture.height * MAX_WIDTH / picture.width)
        picture = picture.resize((MAX_WIDTH, height), Image.LANCZOS)
    for quality in (92, 85, 75, 60, 45):
        with replacing(path) as partial:
            picture.save(partial, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= MAX_BYTES:
            return
    raise ValueError(f'{path} does not fit into {MAX_BYTES} bytes; draw less in it.')


def wrapped(command: str, width: int = 96) -> str:
    """Return a command over several lines where it is long, for a shell to take as it is."""
    positional, *options = command.split(' --')
    # An option stays with its values.
    parts = positional.split(' ') + [f'--{option}' for option in options]
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > width:
            lines.append(' ')
        lines[-1] += f' {part}'
    return ' \\\n'.join(lines)


def page(entries: Sequence[tuple[Entry, str]], pictures: str) -> str:
    """Return the text of the gallery."""
    parts = [
        '# Gallery\n\nMade by `make gallery` from the small models that `make demo` trains on '
        'drawn pictures, '
        f'with torch {torch.__version__.split("+")[0]} on {date.today().isoformat()}. Each command '
        'works with any config, its checkpoint and your own pictures; [analysis.md](analysis.md) '
        'says more.\n'
    ]
    for entry, command in entries:
        parts.append(
            f'## {entry.title}\n\n![{entry.title}]({pictures}/{entry.name}.jpg)\n\n{entry.text}\n\n'
            f'```\n{wrapped(command)}\n```\n'
        )
    return '\n'.join(parts)


def make(entry: Entry, words: Mapping[str, str], pictures: Path) -> str:
    """Make the picture of an entry; return its command, with a plain name for the out folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = run(entry, words, Path(folder))
        images: list[Path] = []
        for pattern in entry.pictures:
            path = Path(pattern.format(out=folder))
            images += sorted(path.parent.glob(path.name))
        if not images:
            raise RuntimeError(f'{command} made none of {", ".join(entry.pictures)}.')
        save_small(side_by_side(images), pictures / f'{entry.name}.jpg')
        return command.replace(folder, f'work_dirs/{entry.name}')


def main(argv: Sequence[str] | None = None) -> int:
    """Make the gallery; return the exit status."""
    parser = argparse.ArgumentParser(description='Regenerate docs/gallery.md.')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/demo'), help='that of run_demo.py'
    )
    parser.add_argument('--out-dir', type=Path, default=Path('docs'), help='where gallery.md goes')
    names = [entry.name for entry in ENTRIES]
    parser.add_argument(
        '--only',
        nargs='+',
        choices=names,
        metavar='NAME',
        help=f'regenerate only these pictures and keep the page; choices: {", ".join(names)}',
    )
    args = parser.parse_args(argv)
    entries = [entry for entry in ENTRIES if args.only is None or entry.name in args.only]
    pictures = args.out_dir / 'images/gallery'
    start = time.monotonic()
    with readable_errors():
        words = fillings(args.work_dir, trained_models(args.work_dir, entries))
        check_out_dir(pictures)
    commands = []
    for entry in entries:
        console.print(f'{entry.title} ({entry.name})')
        try:
            commands.append((entry, make(entry, words, pictures)))
        except (RuntimeError, ValueError) as error:
            console.print(f'error: {error}', style='red', markup=False)
            return 1
    if args.only is None:
        with replacing(args.out_dir / 'gallery.md') as partial:
            partial.write_text(page(commands, 'images/gallery'))
        save_small(banner(pictures), args.out_dir / 'images/banner.jpg')
        # Remove pictures of entries that no longer exist.
        for path in pictures.glob('*.jpg'):
            if path.stem not in names:
                path.unlink()
    console.print(f'{len(entries)} pictures in {time.monotonic() - start:.0f} s: {args.out_dir}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
