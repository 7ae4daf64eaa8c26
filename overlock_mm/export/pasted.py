"""The masks of a detector's boxes, pasted to the image inside of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from overlock_mm.export.parts import Exportable


class PastedMasks(Exportable):
    """A detector with one more output: ``pasted_masks`` [B, D, H, W], bool, at the input's size.

    They are those of mmdet's ``FCNMaskHead``, which interpolates between the middles of a mask's
    pixels and takes zero around them. That is a product with a matrix for each axis, so the graph
    needs no operator for sampling. Its largest tensor is [B, D, H, W] in float32.

    Args:
        part: A detector with the output ``masks``, of boxes.

    Raises:
        TypeError: ``part`` has no such masks.
    """

    def __init__(self, part: Exportable) -> None:
        super().__init__(part)
        if 'masks' not in part.output_names:
            raise TypeError(
                'Only masks of boxes can be pasted, those of Mask and Cascade Mask R-CNN; the '
                f'outputs of this model are {", ".join(part.output_names)}.'
            )
        self.task, self.input_names = part.task, part.input_names
        self.output_names = (*part.output_names, 'pasted_masks')
        self.head, self.note, self.size_divisor = part.head, part.note, part.size_divisor

    def forward(self, image: Tensor, *further: Tensor) -> Any:
        """The part's inputs to its outputs and the masks."""
        self.model.fixed_size, self.model.fixed_rows = self.fixed_size, self.fixed_rows
        outputs = self.model(image, *further)
        named = dict(zip(self.model.output_names, outputs, strict=True))
        boxes, masks = named['boxes'], named['masks']
        height, width = image.shape[-2:]
        x, y = (
            _interpolation(masks.shape[-1 - axis], size, boxes[..., axis], boxes[..., axis + 2])
            for axis, size in enumerate((width, height))
        )
        found = named['labels'] >= 0
        pasted = (y @ masks @ x.transpose(-1, -2) >= self.head['threshold']) & found[
            ..., None, None
        ]
        return *outputs, pasted

    def inputs_of(self, image: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Exportable`."""
        return self.model.inputs_of(image)

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """See :class:`Exportable`; of masks the share of the covered pixels, if a thousandth."""
        if actual[-1].shape != expected[-1].shape:
            return float('inf')
        # Together, as detections of nearly one score may change places.
        covered, wanted = actual[-1].any(1), expected[-1].any(1)
        share = ((covered != wanted).sum() / wanted.sum().clamp(min=1)).item()
        others = self.model.difference(actual[:-1], expected[:-1])
        return others if share < 1e-3 else max(others, share)


def _interpolation(count: int, size: Any, start: Tensor, end: Tensor) -> Tensor:
    """[B, D, size, count]: the weights of a mask's pixels at each of the image's along one axis."""
    pixel = torch.arange(size, dtype=torch.float32) + 0.5
    extent = torch.where(end > start, end - start, 1.0)  # rows without an object have none
    place = (pixel - start[..., None]) / extent[..., None] * count - 0.5
    distance = (place[..., None] - torch.arange(count, dtype=torch.float32)).abs()
    return (1.0 - distance).clamp(min=0.0)
