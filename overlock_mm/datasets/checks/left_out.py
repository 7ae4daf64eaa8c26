"""Pictures in the folders of a data set that it silently passes over because of their ending."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

#: Suffixes of pictures.
_ENDINGS = ('jpg', 'jpeg', 'jfif', 'png', 'bmp', 'tif', 'tiff', 'webp', 'jp2', 'ppm', 'pgm')
#: Files that are looked at, at most: folders with millions of them take minutes on some disks.
_MOST = 50_000


def pictures_left_out(dataset: Any, folder: str | None, where: str) -> list[str]:
    """Count the pictures that a built data set does not take from the folder that it lists.

    Args:
        dataset: A fully initialised data set of mmseg, or of mmpretrain with folders.
        folder: Where its images are.
        where: The setting that holds it.

    Returns:
        A warning, or none.
    """
    if os.path.isfile(dataset.ann_file or '') or not os.path.isdir(folder or ''):
        return []  # a list names them, or they are not on this disk
    if hasattr(dataset, 'is_valid_file'):  # of mmpretrain
        is_taken = dataset.is_valid_file
        remedy = f'Add their ending to {where}.extensions.'
    else:
        is_taken = _ends_in(dataset.img_suffix, dataset.seg_map_suffix)
        remedy = f'It takes those in {dataset.img_suffix!r} (img_suffix), and capitals count.'
    left_out = [
        file
        for file in islice(_files(str(folder)), _MOST)
        if file.suffix.lower().lstrip('.') in _ENDINGS
        and not file.name.startswith('.')
        and not is_taken(file.name)
    ]
    if not left_out:
        return []
    return [
        f'{where} leaves out {len(left_out)} pictures of {folder} because of their ending, for '
        f'example {min(left_out).name}. {remedy}'
    ]


def _ends_in(*suffixes: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(suffixes)


def _files(folder: str) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield Path(root, name)
