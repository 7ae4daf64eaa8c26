"""Questions to data sets of mmseg: what a sample of the label maps holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .errors import DataError, Problems
from .loading import load_sample

#: Label maps that are looked at, at most, for a value besides 0 and 255.
_MORE = 200


def check_label_maps(dataset: Any, where: str, sample: Sequence[int]) -> Counter[int] | None:
    """Load label maps of a built ``BaseSegDataset`` as it loads them.

    Args:
        dataset: Fully initialised.
        where: The setting that holds it.
        sample: Indices of the images to look at.

    Returns:
        Pixels per label in the sample, or None without label maps.

    Raises:
        DataError: A map is missing, has another size than its image, is a colour picture, or holds
            values that are no label.
    """
    classes = dataset.metainfo.get('classes')
    ignored = dataset.ignore_index
    pixels: Counter[int] = Counter()
    problems = Problems()
    for index in sample:
        labels = None
        with problems.gathered():
            labels, path = _load(dataset, index, where)
            if labels is None:
                return None
        if labels is None:
            continue
        values, counts = np.unique(labels, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        wrong = values[(values >= len(classes)) & (values != ignored)] if classes else values[:0]
        if len(wrong):
            problems.add(
                f'{path} has label {wrong.max()}, counted from 0 after any reduce_zero_label; the '
                f'data set has {len(classes)} classes and {ignored} is ignored. Correct the file, '
                'or set metainfo.classes, reduce_zero_label and num_classes to fit it.'
            )
    problems.raise_all()
    if pixels and set(pixels) <= {0, ignored} and classes and len(classes) > 1:
        _check_binary(dataset, where, sample)
    if pixels and set(pixels) == {ignored}:
        raise DataError(
            f'Every pixel of {len(sample)} label maps of {where} is ignored: nothing can be '
            'learned or measured from them. Look at the values in the files, at reduce_zero_label '
            f'({dataset.reduce_zero_label}) and at ignore_index ({ignored}).'
        )
    return pixels


def _check_binary(dataset: Any, where: str, sample: Sequence[int]) -> None:
    """Refuse maps of 0 and 255, after a look at more of them."""
    if dataset.ignore_index != 255:
        return
    count = len(dataset)
    others = range(0, count, max(1, count // _MORE))
    values: set[int] = set()
    for index in (*sample, *others):
        path = dataset.get_data_info(index).get('seg_map_path')
        try:
            with Image.open(path) as image:
                values.update(np.unique(np.asarray(image)).tolist())
        except (OSError, SyntaxError, ValueError, AttributeError):
            return  # not for Pillow
        if not values <= {0, 255}:
            return
    if values == {0, 255}:
        raise DataError(
            f'The label maps of {where} hold the values 0 and 255 only, and 255 is ignored: '
            f'{dataset.metainfo["classes"][1]!r} would never be learned, and mIoU would say '
            'nothing. Write the classes as 0, 1, ... (for example PIL: label_map.point(lambda v: v '
            '// 255)), and leave out reduce_zero_label.'
        )


def _load(dataset: Any, index: int, where: str) -> tuple[np.ndarray | None, Any]:
    """The label map of a sample, if its pipeline loads one, and its path."""
    loaded = load_sample(dataset, index, where)
    labels = None if loaded is None else loaded.get('gt_seg_map')
    if loaded is None or labels is None:
        return None, None
    path = loaded.get('seg_map_path')
    if labels.ndim != 2:
        raise DataError(
            f'{path} is a picture in {labels.shape[2]} colour channels, not a label map. Write one '
            'channel with the number of the class in every pixel.'
        )
    if labels.dtype == np.uint8:
        _check_depth(path)
    return labels, path


def _check_depth(path: Any) -> None:
    """Refuse values that do not fit into the 8 bits in which mmseg keeps labels."""
    try:
        with Image.open(path) as image:
            if image.mode in ('1', 'L', 'P'):
                return
            largest = int(np.asarray(image).max())
    except (OSError, SyntaxError, ValueError, AttributeError):
        return  # not for Pillow
    if largest > 255:
        raise DataError(
            f'{path} has value {largest}, and mmseg keeps 8 bits of a label: it would become '
            f'{largest % 256}. Write label maps with values up to 255.'
        )


def check_format(dataset: Any, where: str) -> list[str]:
    """Return a warning about label maps in a format that changes labels."""
    if not dataset.seg_map_suffix.lower().endswith(('.jpg', '.jpeg')):
        return []
    return [
        f'The label maps of {where} are JPEG files, which change values where classes meet, so '
        'that labels become those of other classes. Write PNG files.'
    ]


def named_pixels(pixels: Counter[int], classes: Iterable[str]) -> dict[str, int]:
    """Pixels by the names of their classes, as far as these occur."""
    return {name: pixels[label] for label, name in enumerate(classes) if pixels[label]}
