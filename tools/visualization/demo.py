r"""Predict one's own pictures or video with a detector, segmentor or classifier.

    python tools/visualization/demo.py picture.jpg configs/detection/cascade_overlock_s.py s.pth
    python tools/visualization/demo.py 'pictures/*.jpg' \
        configs/segmentation/upernet_overlock_t.py t.pth
    python tools/visualization/demo.py video.mp4 configs/detection/mask_rcnn_overlock_t_1x.py t.pth

Writes the drawn pictures or the drawn video, and predictions.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from overlock_mm.analysis.predictions import (
    VIDEO_SUFFIXES,
    load_predictor,
    loads_common_images,
    open_video,
    predict_images,
    predict_video,
)
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.images import find_images, output_stems
from overlock_mm.cli.preflight import check_out_dir
from overlock_mm.datasets.checks import DataError
from overlock_mm.utils.config import load_config
from overlock_mm.utils.files import write_json

console = Console(highlight=False)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Predict pictures or a video.')
    parser.add_argument('input', help='a picture, a folder of pictures, a pattern or a video')
    parser.add_argument('config', help='config file; its task is recognised')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument('--out-dir', default='work_dirs/predictions', metavar='FOLDER')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of detections; default: 0.3'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict as the command line says; return the content of the JSON file."""
    args = parse_args(argv)
    load_tensors_only()
    source = Path(args.input)
    is_video = source.suffix.lower() in VIDEO_SUFFIXES and source.is_file()
    with readable_errors():
        if not 0 <= args.score_thr < 1:
            raise ValueError(f'--score-thr must be in [0, 1), got {args.score_thr}.')
        video = open_video(source) if is_video else None
        cfg = load_config(args.config)
        paths = [] if is_video else find_images(source, verified=loads_common_images(cfg))
        names = output_stems(paths)
        check_out_dir(args.out_dir)
        predictor = load_predictor(cfg, args.checkpoint, args.device, args.score_thr)
    content: dict[str, Any] = {'config': args.config, 'checkpoint': args.checkpoint}
    bar: dict[str, Any] = dict(console=console, transient=True)
    if video is not None:
        out_file = Path(args.out_dir, f'{source.stem}.mp4')
        frames = predict_video(predictor, video, out_file)
        predictions = list(track(frames, 'Frames', total=video.frame_cnt, **bar))
        content['video'] = {'path': str(source), 'fps': video.fps, 'frames': predictions}
        console.print(f'{len(predictions)} frames in {out_file}')
    else:
        pictures = predict_images(predictor, paths, names, args.out_dir)
        with readable_errors((DataError,)):
            content['pictures'] = {
                str(path): prediction
                for path, prediction in track(pictures, 'Pictures', total=len(paths), **bar)
            }
        console.print(f'{len(paths)} drawn pictures in {args.out_dir}')
    write_json(Path(args.out_dir, 'predictions.json'), content)
    console.print(f'Predictions: {Path(args.out_dir, "predictions.json")}')
    return content


if __name__ == '__main__':
    main()
