r"""Predict your own pictures or video with a detector, segmentor or classifier.

    python tools/visualization/demo.py picture.jpg configs/detection/cascade_overlock_s.py s.pth
    python tools/visualization/demo.py 'pictures/*.jpg' \
        configs/segmentation/upernet_overlock_t.py t.pth
    python tools/visualization/demo.py video.mp4 exported.onnx

Writes the drawn pictures or the drawn video, and predictions.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from overlock_mm import Predictor
from overlock_mm.analysis.config_model import loads_common_images
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.images import find_images, output_stems
from overlock_mm.cli.preflight import check_out_dir
from overlock_mm.datasets.checks import DataError
from overlock_mm.runtime import Detections, ModelFileError
from overlock_mm.runtime.results import Result
from overlock_mm.runtime.video import VIDEO_SUFFIXES, Video, write_video
from overlock_mm.utils.config import load_config
from overlock_mm.utils.files import replacing, write_json

console = Console(highlight=False)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Predict pictures or a video.')
    parser.add_argument('input', help='a picture, a folder of pictures, a pattern or a video')
    parser.add_argument('config', help='config file, or an exported file (.onnx, .xml)')
    parser.add_argument('checkpoint', nargs='?', help='weights of the config')
    parser.add_argument('--out-dir', default='work_dirs/predictions', metavar='FOLDER')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of detections; default: 0.3'
    )
    parser.add_argument(
        '--device', help='default: cuda for a config, if there is a GPU; cpu for an exported file'
    )
    return parser.parse_args(argv)


def seen_in(result: Result, score_thr: float) -> tuple[Any, Image.Image]:
    """Return a result as plain data and as a drawn picture."""
    if isinstance(result, Detections):
        result = result.above(score_thr)
        return result.to_dict(), result.draw(score=0.0)
    return result.to_dict(), result.draw()


def predict_video(predictor: Predictor, video: Video, path: Path, score_thr: float) -> list[Any]:
    """Return predictions of the frames, drawn into an .mp4 file that is complete or not there."""
    predictions = []

    def drawn() -> Iterator[np.ndarray]:
        frames = predictor.stream(video)
        bar: dict[str, Any] = dict(console=console, transient=True)
        for result in track(frames, 'Frames', total=video.count, **bar):
            data, picture = seen_in(result, score_thr)
            predictions.append(data)
            yield np.asarray(picture)

    with replacing(path) as partial:
        write_video(partial, drawn(), video.fps)
    return predictions


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict as the command line says; return the content of the JSON file."""
    args = parse_args(argv)
    load_tensors_only()
    source = Path(args.input)
    is_video = source.suffix.lower() in VIDEO_SUFFIXES and source.is_file()
    is_file = Path(args.config).suffix in ('.onnx', '.xml')
    with readable_errors():
        if not 0 <= args.score_thr < 1:
            raise ValueError(f'--score-thr must be in [0, 1), got {args.score_thr}.')
        if is_file == (args.checkpoint is not None):
            raise ValueError('Give a config and its checkpoint, or an exported file.')
        video = Video(source) if is_video else None
        if is_file:
            predictor = Predictor(args.config, device=args.device or 'cpu')
            common = predictor.channels == 3
        else:
            common = loads_common_images(load_config(args.config))
        paths = [] if is_video else find_images(source, verified=common)
        names = output_stems(paths)
        check_out_dir(args.out_dir)
        if not is_file:
            device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
            predictor = Predictor(args.config, args.checkpoint, device=device)
    content: dict[str, Any] = {'config': args.config, 'checkpoint': args.checkpoint}
    with readable_errors((DataError, ModelFileError, OSError)):
        if video is not None:
            out_file = Path(args.out_dir, f'{source.stem}.mp4')
            predictions = predict_video(predictor, video, out_file, args.score_thr)
            content['video'] = {'path': str(source), 'fps': video.fps, 'frames': predictions}
            console.print(f'{len(predictions)} frames in {out_file}')
        else:
            content['pictures'] = {}
            for path, name, result in track(
                zip(paths, names, predictor.stream(paths), strict=True),
                'Pictures',
                total=len(paths),
                console=console,
                transient=True,
            ):
                data, picture = seen_in(result, args.score_thr)
                content['pictures'][str(path)] = data
                with replacing(Path(args.out_dir, f'{name}.png')) as partial:
                    picture.save(partial, 'PNG')
            console.print(f'{len(paths)} drawn pictures in {args.out_dir}')
        write_json(Path(args.out_dir, 'predictions.json'), content)
    console.print(f'Predictions: {Path(args.out_dir, "predictions.json")}')
    return content


if __name__ == '__main__':
    main()
