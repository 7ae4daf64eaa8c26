"""Reading pictures as arrays."""

from __future__ import annotations

import glob
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from overlock_mm.runtime.description import ModelDescription

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def read_picture(path: str | Path, channels: int = 3, exif: bool = True) -> np.ndarray:
    """A picture file, uint8 [H, W, C]; three channels are red, green and blue.

    Args:
        path: The file.
        channels: Of the picture; another number than 1 or 3 is read from TIFF files, in the file's
            own dtype.
        exif: Turn it as its EXIF data say.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: tifffile is needed, and not installed.
        ValueError: It is no picture, or has another number of channels.
    """
    if channels not in (1, 3):
        return _read_bands(path, channels)
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


def _read_bands(path: str | Path, channels: int) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise ImportError(
            f'The model takes {channels} channels; TIFF files of them are read by tifffile, which '
            f'is not installed. Remedy: pip install tifffile, or give arrays [H, W, {channels}].'
        ) from None
    try:
        bands = tifffile.imread(path)
    except FileNotFoundError:
        raise FileNotFoundError(f'There is no picture at {path}.') from None
    # What tifffile raises over other and damaged files.
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as a TIFF file ({error}).') from error
    if bands.ndim != 3 or bands.shape[2] != channels:
        raise ValueError(
            f'The model takes {channels} channels, pixel by pixel [H, W, {channels}], and {path} '
            f'holds {list(bands.shape)}.'
        )
    return bands


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
    if hasattr(source, '__iter__') and not isinstance(source, (bytes, bytearray)):
        pictures = [each for part in source for each in sources_of(part)[0]]
        if not pictures:
            raise ValueError('The list of pictures is empty.')
        return pictures, False
    raise TypeError(
        'Pictures are given as a path, folder, pattern, array, Pillow image, or a list of these, '
        f'got {type(source).__name__}.'
    )


def as_array(source: Any, description: ModelDescription) -> np.ndarray:
    """One of :func:`sources_of` as [H, W, C].

    Args:
        source: A path, an array or a Pillow image.
        description: Description of the model.

    Raises:
        ValueError: It does not have the channels of the model, or values that no picture has.
    """
    channels = description.channels
    if isinstance(source, Image.Image):
        source = np.asarray(source.convert('RGB' if channels == 3 else 'L'))
    elif not isinstance(source, np.ndarray):
        return read_picture(source, channels, description.exif)
    array = source[..., None] if source.ndim == 2 else source
    if array.ndim != 3 or array.shape[2] != channels or not array.size:
        raise ValueError(
            f'The model takes arrays [H, W, {channels}], got {list(source.shape)}. Three channels '
            'are red, green and blue.'
        )
    if array.dtype.kind not in 'biuf':
        raise ValueError(f'The model takes arrays of numbers, got dtype {array.dtype}.')
    if array.dtype.kind == 'f':
        _check_floats(array, description)
    return array


def _check_floats(array: np.ndarray, description: ModelDescription) -> None:
    if not np.isfinite(array).all():
        raise ValueError('The array holds NaN or infinite values, which no model takes.')
    of_bytes = max(description.mean, default=0.0) > 1
    if of_bytes and array.min() >= 0 and array.max() <= 1 and (array != np.round(array)).any():
        raise ValueError(
            'The model takes values from 0 to 255, and those of the array are from 0 to 1. '
            'Multiply them by 255.'
        )
