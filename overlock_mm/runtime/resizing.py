"""Resizing as OpenCV and Pillow do it, so that a model sees the pixels that it was trained on.

The pipelines of mmdet and mmseg resize with OpenCV, which a runtime need not have. Its filters do
not blur before they make a picture smaller, as Pillow's do, so one cannot stand in for the other.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

#: One, as OpenCV's 16-bit weights have it.
_ONE = 1 << 11
#: Filter -> taps along an axis.
_TAPS = {'bilinear': 2, 'corners': 2, 'bicubic': 4}


def resize(image: np.ndarray, size: tuple[int, int], filter: str, backend: str) -> np.ndarray:
    """Resize a picture.

    Args:
        image: [H, W, C], uint8 or float32.
        size: New (H, W).
        filter: ``'nearest'``, ``'bilinear'`` or ``'bicubic'``; ``'corners'`` is bilinear with the
            corners on one another, torch's ``align_corners``.
        backend: ``'cv2'`` or ``'pillow'``: whose pixels to give.

    Returns:
        [h, w, C] of the same dtype.
    """
    if image.shape[:2] == tuple(size):
        return image.copy()
    if backend == 'pillow':
        return _resize_as_pillow(image, size, filter)
    if filter == 'nearest':
        rows, columns = (
            np.minimum((np.arange(new) * (old / new)).astype(int), old - 1)
            for new, old in zip(size, image.shape, strict=False)
        )
        return image[rows][:, columns]
    if filter == 'bilinear' and image.shape[0] == 2 * size[0] and image.shape[1] == 2 * size[1]:
        # OpenCV averages areas in this case.
        blocks = image.reshape(size[0], 2, size[1], 2, -1)
        if image.dtype != np.uint8:
            return blocks.mean((1, 3), dtype=np.float32)
        return ((blocks.sum((1, 3), dtype=np.int32) + 2) >> 2).astype(np.uint8)
    if image.dtype != np.uint8:
        image = _along(image, size[1], 1, filter, fixed_point=False)
        return _along(image, size[0], 0, filter, fixed_point=False)
    image = _along(image, size[1], 1, filter, fixed_point=True)
    return _rows_of_fixed_point(image, size[0], filter)


def _weights(new: int, old: int, filter: str) -> tuple[np.ndarray, np.ndarray]:
    """For each new pixel the old ones that it is made of and their weights, [new, taps] both."""
    taps = _TAPS[filter]
    # With OpenCV's precision.
    if filter == 'corners':
        place = (np.arange(new) * ((old - 1) / max(new - 1, 1))).astype(np.float32)
    else:
        place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    x = (place - first).astype(np.float32)[:, None]
    if taps == 2:
        weights = np.concatenate([1 - x, x], 1)
    else:
        a = np.float32(-0.75)
        near = np.concatenate([x, 1 - x], 1)
        far = near + 1
        inner = ((a + 2) * near - (a + 3)) * near * near + 1
        outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
        weights = np.stack([outer[:, 0], inner[:, 0], inner[:, 1], 0 * x[:, 0]], 1)
        weights[:, 3] = 1 - weights[:, :3].sum(1)
    places = first[:, None] + np.arange(taps) - (taps // 2 - 1)
    return places.clip(0, old - 1), weights.astype(np.float32)


def _along(image: np.ndarray, new: int, axis: int, filter: str, fixed_point: bool) -> np.ndarray:
    places, weights = _weights(new, image.shape[axis], filter)
    if fixed_point:
        weights = np.rint(weights * _ONE).astype(np.int32)
    shape = [1, 1, 1]
    shape[axis] = new
    dtype = np.int32 if fixed_point else np.float32
    parts = (
        image.take(places[:, tap], axis).astype(dtype) * weights[:, tap].reshape(shape)
        for tap in range(_TAPS[filter])
    )
    return sum(parts, np.zeros((), dtype))


def _rows_of_fixed_point(image: np.ndarray, new: int, filter: str) -> np.ndarray:
    """The second pass, over sums that the first one left 11 bits longer."""
    places, weights = _weights(new, image.shape[0], filter)
    factors = np.rint(weights * _ONE).astype(np.int32)[..., None, None]
    if _TAPS[filter] == 2:
        parts = (((image[places[:, t]] >> 4) * factors[:, t]) >> 16 for t in range(2))
        total = (sum(parts, np.zeros((), np.int32)) + 2) >> 2
    else:
        exact = (image[places[:, t]].astype(np.int64) * factors[:, t] for t in range(4))
        total = (sum(exact, np.zeros((), np.int64)) + (1 << 21)) >> 22
    return total.clip(0, 255).astype(np.uint8)


def _resize_as_pillow(image: np.ndarray, size: tuple[int, int], filter: str) -> np.ndarray:
    method = getattr(Image.Resampling, filter.upper())
    shape = (size[1], size[0])
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(shape, method))
    channels = (Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(image, 2, 0))
    return np.stack([np.asarray(channel.resize(shape, method)) for channel in channels], 2)
