"""Finding the pictures that a user means: a file, a folder or a pattern."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import cv2
from PIL import Image

from overlock_mm.datasets.checks.errors import DataError
from overlock_mm.datasets.checks.loading import check_complete

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
# Pillow's names of what OpenCV, which reads the pictures later, knows everywhere.
_FORMATS = ('BMP', 'JPEG', 'PNG', 'TIFF', 'WEBP')
_SHOWN = 5
#: 16-bit pixels are read by their upper 8 bits: cameras of 10, 12 or 14 bits give black pictures.
_DARK = 2**14


def find_images(source: str | Path, verified: bool = True) -> list[Path]:
    """The images that ``source`` names, sorted, every one of them looked into.

    Args:
        source: A file; a folder, of which the files with the suffix of an image count, not those of
            its subfolders; or a pattern such as ``'pictures/*.jpg'`` or ``'pictures/**/*.png'``.
        verified: Whether they must be common images of 8 or 16 bits; False for those that a config
            loads in a way of its own, with five bands for example.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A file is not an image; the message names the first such files.
    """
    path = Path(source)
    if path.is_dir():
        paths = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not paths:
            raise FileNotFoundError(
                f'The folder {str(source)!r} holds no images ({", ".join(IMAGE_SUFFIXES)}). For '
                f"those of its subfolders give a pattern, such as '{source}/**/*.jpg'."
            )
    elif path.exists():
        paths = [path]
    else:
        paths = [Path(p) for p in glob.glob(str(source), recursive=True) if Path(p).is_file()]
        if not paths:
            raise FileNotFoundError(
                f'There is no image, no folder and no match of a pattern at {str(source)!r}.'
            )
    reasons = {p: _unreadable(p) for p in paths} if verified else {}
    unreadable = [f'  {p} ({reason})' for p, reason in reasons.items() if reason]
    if unreadable:
        more = f'\n  and {len(unreadable) - _SHOWN} more' if len(unreadable) > _SHOWN else ''
        raise ValueError(
            f'{len(unreadable)} of {len(paths)} files cannot be read as images:\n'
            + '\n'.join(unreadable[:_SHOWN])
            + more
        )
    return sorted(paths)


def output_stems(paths: list[Path]) -> list[str]:
    """A name for each path to write results under: its stem, or its whole name where two collide.

    Raises:
        ValueError: Files of two folders have the same name.
    """
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else path.name.replace('.', '_')
        for path, stem in zip(paths, stems, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'Results are named after the images, and several are called {twice[0]!r}. Give their '
            'folders one by one, each with an output folder of its own.'
        )
    return names


def _unreadable(path: Path) -> str | None:
    """Why a file cannot be used as an image, if it cannot."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            deep = image.mode[0] in 'IF' or '16' in str(image.tile)
            stack = image.format == 'TIFF' and _pages_of_one_size(image)
        with Image.open(path, formats=_FORMATS) as image:
            image.verify()
        check_complete({'img_path': str(path)})
    except DataError:
        return 'truncated'
    except Image.DecompressionBombError:
        return 'too large; cut it into tiles, or make it smaller'
    # What Pillow's readers raise over damaged files.
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PermissionError):
            return 'not permitted'
        if path.stat().st_size == 0:
            return 'empty'
        known = f'{", ".join(_FORMATS[:-1])} or {_FORMATS[-1]}'
        return _reason_of_depth(path) or f'not a {known} image, or damaged'
    if stack:
        return f'{stack} pages of one size, of which only the first would be read; are they bands?'
    return _reason_of_depth(path) if deep else None


def _pages_of_one_size(image: Any) -> int:
    """How many pages a TIFF file has, if they are more than two and no smaller copies; else 0."""
    pages, size = getattr(image, 'n_frames', 1), image.size
    if pages < 3:
        return 0
    image.seek(1)
    return pages if image.size == size else 0


def _reason_of_depth(path: Path) -> str | None:
    """Why the pixels of a file do not become a picture, if OpenCV can read it."""
    with path.open('rb') as file:
        start = file.read(4)
    # OpenCV complains aloud about what it does not know.
    if start not in (b'II*\0', b'MM\0*', b'\x89PNG'):
        return None
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return None
    if pixels.dtype not in ('uint8', 'uint16'):
        return f'its pixels are {pixels.dtype}; write 8 bits'
    if pixels.dtype == 'uint16' and pixels.max() < _DARK:
        return (
            f'16 bits a pixel and no value above {pixels.max()}, so it would be read as nearly '
            'black; scale the values and write 8 bits'
        )
    return None
