"""Images and label maps, looked at when they are first read; a look costs microseconds."""

from __future__ import annotations

import os
from typing import Any

from PIL import Image

from .errors import DataError

#: The last bytes of a complete file.
_ENDINGS = {
    '.jpg': b'\xff\xd9',
    '.jpeg': b'\xff\xd9',
    '.png': b'IEND\xaeB\x60\x82',
}
#: Decoded whole, as no last bytes tell that they are complete.
_DECODED = ('.bmp', '.tif', '.tiff', '.webp', '.jp2')


def watch_files(dataset: Any) -> None:
    """Check every image before, and every label after, the pipeline of a built data set.

    Args:
        dataset: Of mmengine's kind; wrappers such as ``ConcatDataset`` are looked into.
    """
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            watch_files(inner)
    # Wrappers such as MultiImageMixDataset have a list here, and what they hold is watched.
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if not isinstance(transforms, list) or _check_files in transforms:
        return
    transforms.insert(0, _check_files)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes:
        transforms.append(_LabelCheck(len(classes), getattr(dataset, 'ignore_index', None)))


def _check_files(sample: dict) -> dict:
    """A transform: the files of a sample are there and complete."""
    for key in ('img_path', 'seg_map_path'):
        path = sample.get(key)
        if path is not None and '://' not in path:
            check_complete(path)
    return sample


def check_complete(path: str) -> None:
    """Demand that an image file is there and not truncated.

    Raises:
        DataError: Names the file.
    """
    suffix = os.path.splitext(path)[1].lower()
    ending = _ENDINGS.get(suffix, b'')
    try:
        with open(path, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(ending)))
            if size > 0 and suffix not in _DECODED and file.read() == ending:
                return
        # Some sound files end otherwise; decoding tells. OpenCV fills what is missing with grey.
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise DataError(
            f'{path} cannot be read as an image: {error}. Copy it again, or remove it from the '
            'data set.'
        ) from error


class _LabelCheck:
    """A transform: labels are less than the number of classes, or the ignored one.

    Semantic maps beside objects (HTC, panoptic) have classes of their own and are left alone: only
    mmseg's data sets have an ``ignore_index``.
    """

    def __init__(self, num_classes: int, ignore_index: int | None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def __call__(self, packed: dict) -> dict:
        sample = packed.get('data_samples')
        # Views of test-time augmentation come as a list, without need of labels.
        for name in ('gt_label',) if self.ignore_index is None else ('gt_sem_seg',):
            labels = getattr(sample, name, None)
            if sample is None or labels is None:
                continue
            labels = getattr(labels, 'data', labels)  # mmseg's are wrapped
            wrong = labels[labels >= self.num_classes]
            wrong = wrong[wrong != (-1 if self.ignore_index is None else self.ignore_index)]
            if wrong.numel() > 0:
                file = sample.get('seg_map_path') or sample.get('img_path')
                raise DataError(
                    f'{file} has label {int(wrong.max())}, counted from 0 after any '
                    f'reduce_zero_label; the data set has {self.num_classes} classes and '
                    f'{self.ignore_index} is ignored. Correct the file, or set metainfo.classes, '
                    'reduce_zero_label and num_classes to fit it.'
                )
        return packed
