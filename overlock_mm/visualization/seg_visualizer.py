"""Pictures of segmentations of small images."""

from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer

from overlock_mm.visualization.enlarging import EnlargingMixin


@VISUALIZERS.register_module()
class EnlargingSegVisualizer(EnlargingMixin, SegLocalVisualizer):
    """mmseg's visualizer on an enlarged image; arguments as in :class:`EnlargingMixin`."""

    fields = ('gt_sem_seg', 'pred_sem_seg')

    def _scale(self, labels: PixelData) -> PixelData:
        data = labels.data
        for axis in (-2, -1):
            data = data.repeat_interleave(self.factor, axis)
        return PixelData(data=data)
