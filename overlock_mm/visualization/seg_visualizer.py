"""Pictures of segmentations of small images."""

import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer

from overlock_mm.visualization.enlarging import EnlargingMixin


@VISUALIZERS.register_module()
class EnlargingSegVisualizer(EnlargingMixin, SegLocalVisualizer):
    """mmseg's visualizer on an enlarged image; arguments as in :class:`EnlargingMixin`."""

    fields = ('gt_sem_seg', 'pred_sem_seg')

    def _get_center_loc(self, mask: np.ndarray) -> np.ndarray:
        """Where mmseg puts the label of a mask [H, W], (x, y), without its second of sorting."""
        y = mask.sum(1).argmax()
        columns = np.flatnonzero(mask[y])
        return np.array([columns[len(columns) // 2], y])

    def _scale(self, labels: PixelData) -> PixelData:
        data = labels.data
        for axis in (-2, -1):
            data = data.repeat_interleave(self.factor, axis)
        return PixelData(data=data)
