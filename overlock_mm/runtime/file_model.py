"""An exported file as a model: from pictures to results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from overlock_mm.runtime.description import TASKS, ModelDescription, ModelFileError
from overlock_mm.runtime.drawing import colors_of
from overlock_mm.runtime.engines import load_engine
from overlock_mm.runtime.masks import paste
from overlock_mm.runtime.pictures import as_array
from overlock_mm.runtime.preprocessing import Prepared, prepare
from overlock_mm.runtime.resizing import resize
from overlock_mm.runtime.results import Classification, Detections, Result, Segmentation


class FileModel:
    """See the module.

    Args:
        path: An ``.onnx`` or ``.xml`` file.
        device: Device of the engine.
        threads: How many; None leaves it to the runtime.
        engine: ``'onnxruntime'`` or ``'openvino'``; None goes by the suffix.
        precision: Precision of OpenVINO's computation.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The engine is not installed.
        ModelFileError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        threads: int | None = None,
        engine: str | None = None,
        precision: str | None = None,
    ) -> None:
        self.engine = load_engine(path, device, threads, engine, precision)
        self.description = self.engine.description
        if self.description.task not in TASKS:
            raise ModelFileError(
                f'{path} ends in maps of features ({self.description.task}), so there is nothing '
                'to predict with. Export the whole model.'
            )

    def load(self, source: Any) -> np.ndarray:
        """A picture as [H, W, C] of the model's channels."""
        return as_array(source, self.description)

    def predict(self, images: Sequence[np.ndarray], sources: Sequence[str | None]) -> list[Result]:
        """Results of pictures, which run together where their inputs have one size."""
        prepared = [prepare(image, self.description) for image in images]
        results: list[Result | None] = [None] * len(images)
        rows_of_size: dict[tuple[int, ...], list[int]] = {}
        for row, one in enumerate(prepared):
            rows_of_size.setdefault(one.values.shape, []).append(row)
        for rows in rows_of_size.values():
            inputs = {'image': np.stack([prepared[row].values for row in rows])}
            if self.description.task == 'detection':
                inputs['image_size'] = np.array(
                    [prepared[row].counted for row in rows], dtype=np.int64
                )
            outputs = self.engine.run(inputs)
            for place, row in enumerate(rows):
                own = {name: values[place] for name, values in outputs.items()}
                results[row] = result_of(
                    own, prepared[row], self.description, images[row], sources[row]
                )
        return [result for result in results if result is not None]


def result_of(
    outputs: dict[str, np.ndarray],
    prepared: Prepared,
    description: ModelDescription,
    image: np.ndarray,
    source: str | None,
) -> Result:
    """What the outputs for one picture mean."""
    names = description.classes
    palette = description.palette or colors_of(max(len(names), 1))
    common: dict[str, Any] = dict(image=image, classes=names, palette=palette, source=source)
    if description.task == 'classification':
        scores = outputs['scores']
        several = description.head.get('scores') == 'sigmoid'
        labels = (
            np.flatnonzero(scores >= description.head['threshold'])
            if several
            else np.array([scores.argmax()])
        )
        return Classification(**common, scores=scores, labels=labels)
    if description.task == 'segmentation':
        label_map = _label_map(outputs['scores'], prepared, description)
        return Segmentation(**common, label_map=label_map)
    count = int(outputs['count'])
    factors = np.array([1 / side for side in prepared.scale] * 2, np.float32)
    boxes = outputs['boxes'][:count] * factors
    masks = None
    if 'masks' in outputs:
        threshold = description.head['threshold']
        masks = paste(outputs['masks'][:count], boxes, prepared.original, threshold)
    elif 'mask_logits' in outputs:
        masks = _enlarged_masks(outputs['mask_logits'][:count], prepared, description)
    scores, labels = outputs['scores'][:count], outputs['labels'][:count]
    return Detections(**common, boxes=boxes, scores=scores, labels=labels, masks=masks)


def _label_map(scores: np.ndarray, prepared: Prepared, description: ModelDescription) -> np.ndarray:
    """[H, W] of the picture.

    Resized are the logits, as in training; a shift that all classes of a pixel share, between
    logits and logarithms of probabilities, changes no label.
    """
    height, width = prepared.counted
    scores = scores[:, :height, :width].astype(np.float32)
    how = 'corners' if description.head.get('align_corners') else 'bilinear'
    smallest = np.finfo(np.float32).tiny
    if description.head.get('scores') == 'sigmoid':
        logits = np.log(np.maximum(scores, smallest)) - np.log(np.maximum(1 - scores, smallest))
    else:
        logits = np.log(np.maximum(scores, smallest))
    if len(logits) == 1:
        large = resize(logits[0, ..., None], prepared.original, how, 'cv2')[..., 0]
        threshold = description.head['threshold']
        return (large > np.log(threshold / (1 - threshold))).astype(np.int64)
    best = np.full(prepared.original, -np.inf, np.float32)
    labels = np.zeros(prepared.original, np.int64)
    # One class at a time: all at the size of a photo would take gigabytes.
    for label, logit in enumerate(logits):
        large = resize(logit[..., None], prepared.original, how, 'cv2')[..., 0]
        better = large > best
        labels[better] = label
        best[better] = large[better]
    return labels


def _enlarged_masks(
    logits: np.ndarray, prepared: Prepared, description: ModelDescription
) -> np.ndarray:
    """[N, H, W] of the picture from [N, h, w] over the whole input, as RTMDet enlarges them."""
    threshold = description.head['threshold']
    least = np.log(threshold / (1 - threshold))
    height, width = prepared.original
    masks = np.zeros((len(logits), height, width), bool)
    for out, logit in zip(masks, logits, strict=True):
        # First to the input, then to the picture with its padding, which is cut off.
        large = logit[..., None]
        large = resize(large, (len(large) * 8, large.shape[1] * 8), 'bilinear', 'cv2')
        size = [
            int(np.ceil(side / factor))
            for side, factor in zip(large.shape[:2], reversed(prepared.scale), strict=True)
        ]
        large = resize(large, (size[0], size[1]), 'bilinear', 'cv2')[:height, :width, 0]
        out[: large.shape[0], : large.shape[1]] = large > least
    return masks
