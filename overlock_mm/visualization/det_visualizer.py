"""Pictures of detections on small images."""

import torch.nn.functional as F
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData
from torch import Tensor

from overlock_mm.visualization.enlarging import EnlargingMixin


@VISUALIZERS.register_module()
class EnlargingDetVisualizer(EnlargingMixin, DetLocalVisualizer):
    """mmdet's visualizer on an enlarged image; arguments as in :class:`EnlargingMixin`."""

    fields = ('gt_instances', 'pred_instances')

    def _scale(self, instances: InstanceData) -> InstanceData:
        scaled = instances.clone()
        if 'bboxes' in instances:
            scaled.bboxes = get_box_tensor(instances.bboxes) * self.factor
        if 'masks' in instances:
            masks = instances.masks
            if isinstance(masks, Tensor):
                scaled.masks = F.interpolate(masks[:, None].float(), scale_factor=self.factor)[
                    :, 0
                ].bool()
            else:
                scaled.masks = masks.rescale(self.factor)
        return scaled
