"""Pictures of segmentations of small images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer


@VISUALIZERS.register_module()
class EnlargingSegVisualizer(SegLocalVisualizer):
    """mmseg's visualizer on an enlarged image, where its labels do not hide the objects.

    Args:
        name: Under which mmengine keeps it.
        factor: How many times as high and wide, an integer.
        **kwargs: Of ``SegLocalVisualizer``.

    Raises:
        ValueError: ``factor`` is no positive integer.
    """

    # mmengine's registry of global objects asks for an argument called `name`.
    def __init__(self, name: str = 'visualizer', factor: int = 3, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f'factor must be a positive integer, got {factor!r}.')
        self.factor = factor

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: SegDataSample | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Enlarge the image [H, W, 3] and its label maps; then draw as mmseg does."""
        height, width = (side * self.factor for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        if data_sample is not None:
            enlarged = SegDataSample(metainfo=data_sample.metainfo)
            for field in ('gt_sem_seg', 'pred_sem_seg'):
                if field in data_sample:
                    setattr(enlarged, field, self._enlarge(getattr(data_sample, field)))
            data_sample = enlarged
        super().add_datasample(name, image, data_sample, *args, **kwargs)

    def _enlarge(self, labels: PixelData) -> PixelData:
        data = labels.data
        for axis in (-2, -1):
            data = data.repeat_interleave(self.factor, axis)
        return PixelData(data=data)
