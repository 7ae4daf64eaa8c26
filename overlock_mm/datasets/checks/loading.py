"""Files as the data set's own transforms load them; an error names the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from overlock_mm.utils.images import truncation

from .errors import DataError


def load_sample(dataset: Any, index: int, where: str = '') -> dict | None:
    """What the loading transforms of a data set make of a sample, before any augmentation.

    Args:
        dataset: A built data set of mmengine's kind.
        index: Index of the sample.
        where: The setting that holds the data set.

    Returns:
        The sample with, for example, ``img`` and ``gt_seg_map``; None if nothing is loaded.

    Raises:
        DataError: A file is missing, truncated or cannot be loaded.
    """
    sample = dataset.get_data_info(index)
    loaders = list(_loaders(dataset))
    for load in loaders:
        if sample is not None:
            check_complete(sample)
            sample = load_with_name(load, sample, where)
    return sample if loaders else None


def transforms_of(dataset: Any) -> list[Any]:
    """The transforms of a data set; wrappers such as MultiImageMixDataset have a bare list."""
    pipeline = getattr(dataset, 'pipeline', None) or []
    return list(getattr(pipeline, 'transforms', pipeline))


def load_with_name(load: Any, sample: dict, where: str = '') -> Any:
    """Call a loading transform; its error names the file.

    Raises:
        DataError: It failed, or an image and what belongs to it differ in size.
    """
    try:
        loaded = load(sample)
    except DataError:
        raise
    except Exception as error:
        file = _file_of(load, sample)
        if isinstance(error, FileNotFoundError):
            raise DataError(
                f'{file} is missing{f" ({where} names it)" if where else ""}. Complete the data '
                'set, or correct data_root, data_prefix and the suffixes (img_suffix, '
                'seg_map_suffix).'
            ) from error
        if isinstance(error, Image.DecompressionBombError):
            raise DataError(
                f'{file} is too large for Pillow: {error} Cut it into tiles, together with what '
                "belongs to it, or load it with imdecode_backend='cv2'."
            ) from error
        reason = str(error) or type(error).__name__
        raise DataError(
            f'{file} cannot be read as an image by {type(load).__name__}: {reason}. Copy it '
            'again, or remove it from the data set.'
        ) from error
    if isinstance(loaded, dict):
        _check_sizes(loaded)
    return loaded


def check_complete(sample: dict) -> None:
    """Demand that the JPEG and PNG files of a sample are not truncated; it takes microseconds.

    Raises:
        DataError: Names the file.
    """
    for key in ('img_path', 'seg_map_path'):
        path = sample.get(key)
        if isinstance(path, str) and (reason := truncation(path)):
            raise DataError(
                f'{path} cannot be read as an image: {reason}. Copy it again, or remove it from '
                'the data set.'
            )


def is_loader(transform: Any) -> bool:
    """Whether a transform loads; the libraries and their users name these so."""
    return type(transform).__name__.startswith('Load')


def _loaders(dataset: Any) -> Iterator[Any]:
    """Those at the beginning, and the labels that test pipelines load after the resizing."""
    leading = True
    for transform in transforms_of(dataset):
        leading = leading and is_loader(transform)
        if leading or type(transform).__name__ == 'LoadAnnotations':
            yield transform


def _file_of(load: Any, sample: dict) -> Any:
    if 'Annotations' in type(load).__name__ and sample.get('seg_map_path'):
        return sample['seg_map_path']
    return sample.get('img_path', 'A sample')


def _check_sizes(sample: dict) -> None:
    """Masks as run lengths and label maps must have the size of the image as it was loaded."""
    size = sample.get('ori_shape')
    if size is None:
        return
    path = sample.get('img_path')
    labels = sample.get('gt_seg_map')
    if labels is not None and labels.ndim == 2 and labels.shape != tuple(size):
        raise DataError(
            f'{sample.get("seg_map_path")} is {_as_text(labels.shape)} pixels, its image {path} '
            f'{_as_text(size)}{_turned(path, labels.shape, size)}. Resize the label map with '
            'nearest neighbours, or turn it.'
        )
    for instance in sample.get('instances') or () if 'gt_masks' in sample else ():
        mask = instance.get('mask')
        stated = mask.get('size') if isinstance(mask, dict) else None
        if stated is not None and tuple(stated) != tuple(size):
            raise DataError(
                f'{path} is {_as_text(size)} pixels when loaded, but its masks are '
                f'{_as_text(stated)}{_turned(path, stated, size)}, so they would be scrambled. '
                'Correct the sizes, or turn the pixels and remove the EXIF tag (Pillow: '
                'ImageOps.exif_transpose) in the orientation in which the objects were annotated.'
            )


def _as_text(shape: Any) -> str:
    return f'{shape[1]} x {shape[0]}'


def _turned(path: Any, shape: Any, size: Any) -> str:
    if tuple(shape) != tuple(size)[::-1]:
        return ''
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, TypeError):
        turned = False
    return ' (its EXIF orientation turns it)' if turned else ' (width and height are exchanged)'
