"""Reading pictures as arrays."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def read_picture(path: str | Path, channels: int = 3, exif: bool = True) -> np.ndarray:
    """A picture file, uint8 [H, W, C]; three channels are red, green and blue.

    Args:
        path: The file.
        channels: 1 or 3.
        exif: Turn it as its EXIF data say.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, or the model takes another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(
            f'The model takes {channels} channels, and {path} is read as a picture of one or three.'
            f' Give arrays [H, W, {channels}].'
        )
    try:
        with Image.open(path) as image:
            if exif:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith('I;16'):
                # Like OpenCV, by the upper of two bytes.
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            array = np.asarray(image.convert('RGB' if channels == 3 else 'L'))
    except FileNotFoundError:
        raise FileNotFoundError(f'There is no picture at {path}.') from None
    except UnidentifiedImageError:
        raise ValueError(f'{path} cannot be read as a picture.') from None
    # What Pillow's readers raise over damaged files.
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as a picture ({error}).') from error
    return array if array.ndim == 3 else array[..., None]


def find_pictures(source: str | Path) -> list[Path]:
    """The files that a path, a folder or a pattern such as ``'*.jpg'`` stands for, sorted.

    Raises:
        FileNotFoundError: There are none.
    """
    path = Path(source)
    if path.is_dir():
        paths = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not paths:
            raise FileNotFoundError(
                f'The folder {path} holds no pictures ({", ".join(IMAGE_SUFFIXES)}). For those '
                f"of its subfolders, give a pattern such as '{path}/**/*.jpg'."
            )
    elif path.exists():
        paths = [path]
    else:
        paths = [p for p in map(Path, glob.glob(str(source), recursive=True)) if p.is_file()]
        if not paths:
            raise FileNotFoundError(f'There is no picture, folder or match of a pattern: {source}.')
    return sorted(paths)


def sources_of(source: Any) -> tuple[list[Any], bool]:
    """What to predict, one by one, and whether the caller gave a single picture.

    Args:
        source: A path, folder, pattern, array, Pillow image, or a list of these.

    Raises:
        FileNotFoundError: A path leads nowhere.
        ValueError: The list is empty.
        TypeError: It is something else.
    """
    if isinstance(source, (str, PathLike)):
        return find_pictures(str(source)), Path(source).is_file()
    if isinstance(source, (np.ndarray, Image.Image)):
        return [source], True
    if isinstance(source, Sequence) or hasattr(source, '__iter__'):
        pictures = [each for part in source for each in sources_of(part)[0]]
        if not pictures:
            raise ValueError('The list of pictures is empty.')
        return pictures, False
    raise TypeError(
        'Pictures are given as a path, folder, pattern, array, Pillow image, or a list of these, '
        f'got {type(source).__name__}.'
    )


def as_array(source: Any, channels: int, exif: bool) -> np.ndarray:
    """One of :func:`sources_of` as [H, W, C].

    Raises:
        ValueError: It does not have the channels of the model.
    """
    if isinstance(source, Image.Image):
        source = np.asarray(source.convert('RGB' if channels == 3 else 'L'))
    elif not isinstance(source, np.ndarray):
        return read_picture(source, channels, exif)
    array = source[..., None] if source.ndim == 2 else source
    if array.ndim != 3 or array.shape[2] != channels or not array.size:
        raise ValueError(
            f'The model takes arrays [H, W, {channels}], got {list(source.shape)}. Three channels '
            'are red, green and blue.'
        )
    return array
