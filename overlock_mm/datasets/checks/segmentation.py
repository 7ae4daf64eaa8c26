"""Questions to data sets of mmseg: what a sample of the label maps holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import DataError


def check_label_maps(dataset: Any, where: str, sample: Sequence[int]) -> str | None:
    """Decode label maps of a built ``BaseSegDataset``.

    Args:
        dataset: Fully initialised.
        where: The setting that holds it.
        sample: Indices of the images to look at.

    Returns:
        Pixels per class in the sample, or None without label maps.

    Raises:
        DataError: A map is missing, has another size than its image, is a colour picture, or holds
            values that are no label.
    """
    classes = dataset.metainfo.get('classes')
    raw_values: set[int] = set()
    pixels: dict[int, int] = {}
    for index in sample:
        info = dataset.get_data_info(index)
        path = info.get('seg_map_path')
        if path is None or '://' in path:
            return None
        for needed, what in ((info['img_path'], 'an image'), (path, 'a label map')):
            if '://' not in needed and not Path(needed).is_file():
                raise DataError(
                    f'{needed} is missing ({what} of {where}). Complete the data set, or correct '
                    'data_prefix, img_suffix and seg_map_suffix.'
                )
        values = _read(path, info['img_path'])
        if values is None:
            continue
        raw_values.update(np.unique(values).tolist())
        for value, count in _labels(values, dataset).items():
            pixels[value] = pixels.get(value, 0) + count
            if classes and value >= len(classes) and value != dataset.ignore_index:
                raise DataError(
                    f'{path} has label {value}, counted from 0 after any reduce_zero_label; the '
                    f'data set has {len(classes)} classes and {dataset.ignore_index} is ignored. '
                    'Correct the file, or set metainfo.classes, reduce_zero_label and num_classes '
                    'to fit it.'
                )
    if not classes:
        return None
    if dataset.ignore_index == 255 and raw_values == {0, 255} and len(classes) > 1:
        raise DataError(
            f'The label maps of {where} hold the values 0 and 255 only, and 255 is ignored: '
            f'{classes[1]!r} would never be learned, and mIoU would be 100. Write the classes as '
            '0, 1, ... (for example PIL: label_map.point(lambda v: v // 255)).'
        )
    named = {classes[v]: n for v, n in sorted(pixels.items()) if v < len(classes)}
    return ', '.join(f'{name} {count}' for name, count in named.items()) or None


def _read(path: str, image_path: str) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None  # not for Pillow; the loader judges
    if values.ndim == 3:
        raise DataError(
            f'{path} is a picture in {values.shape[2]} colour channels, not a label map. Write one '
            'channel with the number of the class in every pixel.'
        )
    if values.max(initial=0) > 255:
        raise DataError(
            f'{path} has value {values.max()}, and mmseg keeps 8 bits of a label: it would become '
            f'{values.max() % 256}. Write label maps with values up to 255.'
        )
    if '://' not in image_path:
        try:
            with Image.open(image_path) as image:
                size = image.size
        except (OSError, SyntaxError, ValueError):
            return values
        if size != values.shape[::-1] and size != values.shape:
            raise DataError(
                f'{path} is {values.shape[1]} x {values.shape[0]} pixels, its image {image_path} '
                f'{size[0]} x {size[1]}. Resize the label map with nearest neighbours.'
            )
    return values


def _labels(values: np.ndarray, dataset: Any) -> dict[int, int]:
    """Labels and their pixels, after what mmseg's ``LoadAnnotations`` does."""
    found, counts = np.unique(values, return_counts=True)
    labels: dict[int, int] = {}
    for raw, count in zip(found.tolist(), counts.tolist(), strict=True):
        label = raw
        if dataset.reduce_zero_label:
            label = 255 if label in (0, 255) else label - 1
        label = (dataset.label_map or {}).get(label, label)
        labels[label] = labels.get(label, 0) + count
    return labels
