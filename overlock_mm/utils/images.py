"""Reading of images: which files are accepted, and how their pixels are converted.

The rules are those of the OpenMMLab libraries' default pipelines, so that a tool shows a network
the pixels that training and testing do: OpenCV reads the file, turns the image as its EXIF
orientation says, makes three channels of it and keeps 8 bits. Files that these rules would spoil
are refused. Label maps, and the loading transforms of a config, have rules of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow's names of the formats that every build of OpenCV reads.
_FORMATS = ('BMP', 'JPEG', 'PNG', 'TIFF', 'WEBP')
#: 16-bit pixels are read by their upper 8 bits: cameras of 10, 12 or 14 bits give black pictures.
_DARK = 2**14
#: The last bytes of a complete file in the formats where OpenCV fills what is missing with grey. In
#: the others (BMP, TIFF, WebP, JPEG 2000) it refuses a truncated file.
_ENDINGS = {
    '.jpg': b'\xff\xd9',
    '.jpeg': b'\xff\xd9',
    '.png': b'IEND\xaeB\x60\x82',
}


def read_image(path: str | Path) -> np.ndarray:
    """Return the pixels of an image file, uint8 BGR [H, W, 3].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read as an image; the message says why.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no image at {str(path)!r}.')
    reason = why_unreadable(path)
    pixels = None if reason else cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        reason = reason or 'OpenCV does not decode it'
        raise ValueError(f'{str(path)!r} cannot be read as an image: {reason}.')
    return pixels


def why_unreadable(path: Path) -> str | None:
    """Return why a file cannot be used as an image, or None if it can."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            deep = image.mode[0] in 'IF' or '16' in str(image.tile)
            stack = image.format == 'TIFF' and _pages_of_one_size(image)
        with Image.open(path, formats=_FORMATS) as image:
            image.verify()
        if truncation(path):
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


def truncation(path: str | Path) -> str | None:
    """Return Pillow's message about a truncated JPEG or PNG file, or None for a complete one.

    A look at the end of a complete file takes microseconds. Files of other formats, and files that
    are missing or unknown to Pillow, are not judged.
    """
    ending = _ENDINGS.get(os.path.splitext(path)[1].lower())
    if ending is None:
        return None
    try:
        with open(path, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(ending)))
            if file.read() == ending:
                return None
        # Some sound files end otherwise; decoding tells.
        with Image.open(path) as image:
            image.load()
    except (FileNotFoundError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    except (OSError, SyntaxError) as error:
        return str(error)
    return None


def _pages_of_one_size(image: Any) -> int:
    """Return the number of a TIFF file's pages; 0 for fewer than 3, or for smaller copies."""
    pages, size = getattr(image, 'n_frames', 1), image.size
    if pages < 3:
        return 0
    image.seek(1)
    return pages if image.size == size else 0


def _reason_of_depth(path: Path) -> str | None:
    """Return why the pixels of a file that OpenCV reads do not make a picture, or None."""
    with path.open('rb') as file:
        start = file.read(4)
    # OpenCV prints warnings about what it does not know.
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
