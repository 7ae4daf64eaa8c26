"""Reading and writing video with OpenCV, which a runtime need not have otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')


class Video:
    """Frames of a video file, uint8 [H, W, 3] each, red, green and blue.

    Args:
        path: The file.

    Attributes:
        fps: Frames in a second.
        count: Frames that the file promises; it may hold fewer.

    Raises:
        ImportError: OpenCV is not installed.
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read as a video.
    """

    def __init__(self, path: str | Path) -> None:
        cv2 = _opencv()
        if not Path(path).is_file():
            raise FileNotFoundError(f'There is no video at {path}.')
        self._path = str(path)
        video = cv2.VideoCapture(self._path)
        self.count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = video.get(cv2.CAP_PROP_FPS)
        self.fps = rate if rate > 0 else 25.0
        opened = video.isOpened()
        video.release()
        if not opened or self.count < 1:
            raise ValueError(
                f'{path} cannot be read as a video. Convert it to H.264 in an .mp4 file.'
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        video = _opencv().VideoCapture(self._path)
        try:
            ok, frame = video.read()
            while ok:
                yield np.ascontiguousarray(frame[..., ::-1])
                ok, frame = video.read()
        finally:
            video.release()


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, uint8 [H, W, 3] each, in MPEG-4.

    Args:
        path: Ends in ``.mp4``.
        frames: Frames of one size. An odd side loses its last row or column, as the codec
            requires even ones.
        fps: Frames in a second.

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: This OpenCV cannot write videos.
        OSError: The file is not complete, as on a full disk.
    """
    cv2 = _opencv()
    writer = None
    written = 0
    try:
        for frame in frames:
            height, width = (side - side % 2 for side in frame.shape[:2])
            if writer is None:
                code = cv2.VideoWriter_fourcc(*'mp4v')
                writer = cv2.VideoWriter(str(path), code, fps, (width, height))
                if not writer.isOpened():
                    raise ValueError(
                        'OpenCV cannot write MPEG-4 videos here. Install opencv-python-headless '
                        'from the package index, which can.'
                    )
            writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
            written += 1
    finally:
        if writer is not None:
            writer.release()
    # OpenCV does not tell of a full disk.
    if int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) < written:
        raise OSError(f'{path} could not be written completely. Is the disk full?')


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise ImportError(
            'Video is read and written with OpenCV, which is not installed. Remedy: '
            'pip install opencv-python-headless.'
        ) from None
    return cv2
