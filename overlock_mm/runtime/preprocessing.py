"""From a picture to the input of a model, as the test pipeline of its config does it.

The steps of a description are objects with a ``step``:

- ``resize_in``: ``scale`` [long, short]; as large as fits, the ratio kept, whichever way the
  picture lies. ``fit``: ``size`` [H, W], the same in a frame that lies as it does.
- ``resize_edge``: ``edge`` (``'short'``, ``'long'``, ``'width'`` or ``'height'``) and its
  ``length``; the ratio is kept. ``stretch``: ``size`` [H, W].
- ``resize_to_multiple``: ``divisor`` of both sides, rounded up.
- ``crop``: ``size`` [H, W], from the middle.
- ``pad``: ``size`` [H, W] or ``divisor``; to the right and below, with ``value``. ``counts`` says
  whether the padding belongs to the picture: boxes may then reach into it. ``after`` says whether
  the value stands beside normalised ones.

Those that resize have a ``filter`` and a ``backend`` (:mod:`overlock_mm.runtime.resizing`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from overlock_mm.runtime.description import ModelDescription, ModelFileError
from overlock_mm.runtime.resizing import resize


@dataclass(frozen=True)
class Prepared:
    """The input for one picture.

    Attributes:
        values: [C, H, W], float32.
        original: (H, W) of the picture.
        resized: (H, W) that the whole picture was resized to.
        counted: (H, W) of ``values`` without padding that does not belong to the picture.
        cropped: (y, x) of where the middle was cut out.
    """

    values: np.ndarray
    original: tuple[int, int]
    resized: tuple[int, int]
    counted: tuple[int, int]
    cropped: tuple[int, int] = (0, 0)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input for one of the picture, in x and y."""
        return self.resized[1] / self.original[1], self.resized[0] / self.original[0]


def prepare(image: np.ndarray, description: ModelDescription) -> Prepared:
    """The input for a picture.

    Args:
        image: [H, W, C]; three channels are red, green and blue.
        description: Description of the model.

    Raises:
        ModelFileError: The description does not say how, or the result does not fit the model.
    """
    if description.steps is None:
        raise ModelFileError(
            f'The test pipeline of {description.config} does more than the metadata of a file can '
            'say. Prepare the input yourself, and run the file with its runtime.'
        )
    if image.dtype not in (np.uint8, np.float32):
        image = image.astype(np.float32)
    original = resized = _size(image)
    counted: tuple[int, int] | None = None
    cropped = (0, 0)
    late = []
    for step in description.steps:
        if step['step'] == 'pad' and step.get('after'):
            late.append(step)
        elif step['step'] == 'pad':
            if not step.get('counts'):
                counted = counted or _size(image)
            image = _padded(image, step)
        elif step['step'] == 'crop':
            y, x = cropped = (
                max(0, round((image.shape[0] - step['size'][0]) / 2)),
                max(0, round((image.shape[1] - step['size'][1]) / 2)),
            )
            image = image[y : y + step['size'][0], x : x + step['size'][1]]
        else:
            size = _new_size(_size(image), step)
            image = resize(image, size, step['filter'], step['backend'])
            resized = size
    image = image.astype(np.float32)
    if description.order == 'BGR':
        image = image[..., ::-1]
    if description.mean:
        image = (image - np.asarray(description.mean, np.float32)) / np.asarray(
            description.std, np.float32
        )
    counted = counted or _size(image)
    for step in late:
        image = _padded(image, step)
    if description.size is not None and image.shape[:2] != tuple(description.size):
        raise ModelFileError(
            f'The model takes {description.size[0]} x {description.size[1]} pixels, and its steps '
            f'made {image.shape[0]} x {image.shape[1]}. Export it with --dynamic.'
        )
    values = np.ascontiguousarray(image.transpose(2, 0, 1))
    return Prepared(values, original, resized, counted, cropped)


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _new_size(old: tuple[int, int], step: Mapping[str, Any]) -> tuple[int, int]:
    height, width = old
    kind = step['step']
    if kind == 'stretch':
        return step['size'][0], step['size'][1]
    if kind == 'resize_to_multiple':
        divisor = step['divisor']
        return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor
    if kind == 'resize_in':
        long, short = max(step['scale']), min(step['scale'])
        factor = min(long / max(old), short / min(old))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
    if kind == 'fit':
        factor = min(step['size'][0] / height, step['size'][1] / width)
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
    if kind == 'resize_edge':
        edge, length = step['edge'], step['length']
        of_width = edge == 'width' or (edge == 'short') == (width < height) and edge != 'height'
        if of_width:
            return int(length * height / width), length
        return length, int(length * width / height)
    raise ModelFileError(
        f'The file asks for the step {kind!r}, which this overlock_mm does not know. Remedy: '
        'pip install --upgrade overlock_mm.'
    )


def _padded(image: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    height, width = image.shape[:2]
    if 'size' in step:
        size = step['size']
    else:
        size = [math.ceil(side / step['divisor']) * step['divisor'] for side in (height, width)]
    if size[0] < height or size[1] < width:
        raise ModelFileError(
            f'The model takes {size[0]} x {size[1]} pixels at most, and its steps made '
            f'{height} x {width}. Export it with --dynamic.'
        )
    padded = np.empty((*size, image.shape[2]), image.dtype)
    padded[:] = np.asarray(step.get('value', 0), image.dtype)
    padded[:height, :width] = image
    return padded
