"""Pictures of detections on small images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData
from torch import Tensor


@VISUALIZERS.register_module()
class EnlargingDetVisualizer(DetLocalVisualizer):
    """mmdet's visualizer on an enlarged image, where its labels do not hide the objects.

    Args:
        name: Under which mmengine keeps it.
        factor: How many times as high and wide, an integer.
        **kwargs: Of ``DetLocalVisualizer``.

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
        data_sample: DetDataSample | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Enlarge the image [H, W, 3], its boxes and masks; then draw as mmdet does."""
        height, width = (side * self.factor for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        if data_sample is not None:
            enlarged = DetDataSample(metainfo=data_sample.metainfo)
            for field in ('gt_instances', 'pred_instances'):
                if field in data_sample:
                    setattr(enlarged, field, self._enlarge(getattr(data_sample, field)))
            data_sample = enlarged
        super().add_datasample(name, image, data_sample, *args, **kwargs)

    def _enlarge(self, instances: InstanceData) -> InstanceData:
        enlarged = instances.clone()
        if 'bboxes' in instances:
            enlarged.bboxes = instances.bboxes * self.factor
        if 'masks' in instances:
            masks = instances.masks
            if isinstance(masks, Tensor):
                enlarged.masks = F.interpolate(masks[:, None].float(), scale_factor=self.factor)[
                    :, 0
                ].bool()
            else:
                enlarged.masks = masks.rescale(self.factor)
        return enlarged
