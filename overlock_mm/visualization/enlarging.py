"""Shared base of the visualizers for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement


class EnlargingMixin:
    """Draws on an enlarged image, where labels do not hide the objects.

    Comes before a visualizer of the OpenMMLab libraries in the list of bases.

    Args:
        name: Under which mmengine keeps it.
        factor: How many times as high and wide, an integer.
        **kwargs: Arguments of the visualizer.

    Raises:
        ValueError: ``factor`` is not a positive integer.
    """

    #: Fields of a data sample that :meth:`_scale` takes; the others are not drawn.
    fields: Sequence[str] = ()

    # mmengine's registry of global objects asks for an argument called `name`.
    def __init__(self, name: str = 'visualizer', factor: int = 3, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)  # type: ignore[call-arg]  # of the visualizer
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f'factor must be a positive integer, got {factor!r}.')
        self.factor = factor

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: BaseDataElement | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Enlarge the image [H, W, 3] and what is drawn on it; then draw as the library does."""
        height, width = (side * self.factor for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        if data_sample is not None:
            scaled = type(data_sample)(metainfo=data_sample.metainfo)
            for field in self.fields:
                if field in data_sample:
                    setattr(scaled, field, self._scale(getattr(data_sample, field)))
            data_sample = scaled
        super().add_datasample(  # type: ignore[misc]  # of the visualizer
            name, image, data_sample, *args, **kwargs
        )

    def _scale(self, field: Any) -> Any:
        """Return a field of the data sample for the enlarged image; subclasses implement it."""
        raise NotImplementedError
