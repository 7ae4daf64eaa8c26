"""Masks: from a network's small maps to a picture's pixels, and from pixels to COCO's code."""

from __future__ import annotations

from typing import Any

import numpy as np


def paste(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float
) -> np.ndarray:
    """Masks of a picture from the probabilities in each box.

    Between the middles of the small pixels it is interpolated, and around them is nothing, as
    mmdet's ``FCNMaskHead`` does it.

    Args:
        masks: [N, h, w].
        boxes: [N, 4], corners in pixels of the picture.
        size: (H, W) of the picture.
        threshold: Probability from which a pixel belongs to a mask.

    Returns:
        [N, H, W], bool.
    """
    boxes = boxes.astype(np.float32)
    pasted = np.zeros((len(masks), *size), bool)
    for mask, box, out in zip(masks, boxes, pasted, strict=True):
        # Limited to the picture and the box.
        low = np.maximum(np.floor(box[:2]) - 1, 0).astype(int)
        high = np.minimum(np.ceil(box[2:]) + 1, size[::-1]).astype(int)
        if (high <= low).any() or (box[2:] <= box[:2]).any():
            continue
        x, y = (
            _interpolation(mask.shape[1 - axis], low[axis], high[axis], box[axis], box[axis + 2])
            for axis in range(2)
        )
        out[low[1] : high[1], low[0] : high[0]] = y @ mask @ x.T >= threshold
    return pasted


def _interpolation(count: int, low: int, high: int, start: float, end: float) -> np.ndarray:
    """[high - low, count]: each pixel from the small pixels around it; nothing lies outside."""
    place = (np.arange(low, high, dtype=np.float32) + np.float32(0.5) - start) / (end - start)
    place = place * np.float32(count) - np.float32(0.5)
    distance = np.abs(place[:, None] - np.arange(count, dtype=np.float32))
    return np.maximum(1 - distance, 0)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] in the compressed code of COCO, whose runs go down the columns."""
    flat = mask.astype(bool).ravel(order='F')
    changes = np.flatnonzero(np.diff(flat)) + 1
    # The first run is of zeros, if only of none.
    edges = np.concatenate([[0], [0] * bool(flat.size and flat[0]), changes, [flat.size]])
    counts = np.diff(edges.astype(int)).tolist()
    text = []
    for i, count in enumerate(counts):
        # From the fourth on, what a run is longer than the one before the last.
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(bits + 32 * more + 48))
    return {'size': list(mask.shape), 'counts': ''.join(text)}
