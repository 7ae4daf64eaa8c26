"""Test-time augmentation for detectors that predict masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

# The axes of a mask [instances, H, W] that each of mmdet's flips reverses.
_FLIPPED_AXES = {None: (), 'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Merge the instances found in scaled and flipped views of an image.

    The boxes of all views, brought back to the original image, go through one non-maximum
    suppression per class. A surviving box keeps the mask of its own view; masks are not averaged.

    The pipeline must pack the meta key ``flip_direction`` and not ``flip``: a cascade's heads take
    the latter as a request to flip masks themselves, which fails in mmdet.

    Args:
        nms: Config of ``mmcv.ops.batched_nms``.
        max_per_img: How many instances an image keeps.
        **kwargs: ``module`` (the detector) and the other arguments of ``BaseTTAModel``.
    """

    def __init__(self, nms: dict, max_per_img: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nms = nms
        self.max_per_img = max_per_img

    def merge_preds(
        self, data_samples_list: Sequence[Sequence[DetDataSample]]
    ) -> list[DetDataSample]:
        """Merge predictions, given per image as the sequence of its views."""
        return [self._merge_views(views) for views in data_samples_list]

    def _merge_views(self, views: Sequence[DetDataSample]) -> DetDataSample:
        instances = InstanceData.cat([_without_flip(view) for view in views])
        merged = views[0]
        if len(instances) > 0:
            boxes, kept = batched_nms(
                instances.bboxes, instances.scores, instances.labels, self.nms
            )
            instances = instances[kept]
            # Soft variants of the suppression lower the scores.
            instances.scores = boxes[:, -1]
            instances = instances[: self.max_per_img]
        merged.pred_instances = instances
        return merged


def _without_flip(view: DetDataSample) -> InstanceData:
    """Return the view's instances in the coordinates of the original, unflipped image.

    Fields that only one head adds, such as RTMDet's kernels, are dropped.
    """
    predicted = view.pred_instances
    direction = view.flip_direction
    boxes = predicted.bboxes
    if direction is not None:
        boxes = bbox_flip(boxes, view.ori_shape, direction)
    instances = InstanceData(bboxes=boxes, scores=predicted.scores, labels=predicted.labels)
    if 'masks' in predicted:
        instances.masks = torch.flip(predicted.masks, _FLIPPED_AXES[direction])
    return instances
