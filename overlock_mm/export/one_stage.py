"""Detectors with a dense head as modules from images to boxes and masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from overlock_mm.export.detectors import (
    ExportableDetector,
    probabilities,
    why_not_coder,
    why_not_nms,
    without_small,
)
from overlock_mm.export.selection import (
    NOTHING,
    decode,
    filled_rows,
    kept_scores_by_label,
    spread_rows,
    take,
)


class ExportableOneStage(ExportableDetector):
    """RetinaNet, RTMDet and others that predict as mmdet's ``BaseDenseHead`` does.

    Args:
        model: A detector of mmdet for which :func:`why_not_one_stage` has no reasons.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.max_detections = self.model.bbox_head.test_cfg.max_per_img
        self.with_masks = hasattr(self.model.bbox_head, 'num_gen_params')
        if self.with_masks:
            self.output_names = (*self.output_names, 'mask_logits')
        self._describe(self.model.bbox_head.test_cfg, 'image' if self.with_masks else None)

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """See :class:`ExportableDetector`; ``mask_logits`` are [B, D, H / 8, W / 8]."""
        head = self.model.bbox_head
        cfg = head.test_cfg
        logits, deltas, *more = head(self.model.extract_feat(image))
        maps = more.pop() if self.with_masks else None
        by_level = [probabilities(head, level) for level in logits]
        by_level = [torch.where(score > cfg.score_thr, score, NOTHING) for score in by_level]
        limit = cfg.get('nms_pre', -1)
        score, label, _, prior, delta, *more = self._candidates(
            head,
            by_level,
            self._priors(head, logits, **(dict(with_stride=True) if self.with_masks else {})),
            limit if limit > 0 else 2**31,
            deltas,
            *more,
        )
        limits = self._limits(image_size)[:, None]
        points = prior[..., :2] if self.with_masks else prior
        boxes = decode(head.bbox_coder, points, delta, limits)
        if more and not self.with_masks:
            # The centre-ness of FCOS and similar detectors.
            score = torch.where(score > NOTHING / 2, score * more[0][..., 0].sigmoid(), NOTHING)
        kept = kept_scores_by_label(
            boxes,
            without_small(cfg, boxes, score),
            label,
            head.num_classes,
            limit=cfg.max_per_img,
            iou=cfg.nms.iou_threshold,
            threshold=NOTHING / 2,
        )
        scores, place, outputs = self._chosen(kept, boxes, label)
        if not self.with_masks:
            return outputs
        return *outputs, self._masks(maps, scores, take(prior, place), take(more[0], place))

    def _masks(self, maps: Any, scores: Tensor, priors: Tensor, kernels: Tensor) -> Tensor:
        """[B, D, h, w], for each detection what its own three layers make of [B, C, h, w] maps."""
        head = self.model.bbox_head
        rows = filled_rows(scores, self.fixed_rows)
        images = torch.div(rows, scores.shape[1], rounding_mode='floor')
        priors, kernels = priors.flatten(0, 1)[rows], kernels.flatten(0, 1)[rows]
        size = maps.shape[-2:]
        grid = head.prior_generator.single_level_grid_priors(self._size(maps), 0, device='cpu')
        place = (priors[:, None, :2] - grid).transpose(1, 2) / (priors[:, 2, None, None] * 8)
        x = torch.cat([place, maps.flatten(2)[images]], 1)
        numbers = kernels.split_with_sizes([*head.weight_nums, *head.bias_nums], dim=1)
        layers = len(head.weight_nums)
        for i, (weight, bias) in enumerate(zip(numbers[:layers], numbers[layers:], strict=True)):
            outputs = head.bias_nums[i]
            x = weight.reshape(-1, outputs, head.weight_nums[i] // outputs) @ x + bias[..., None]
            x = x.relu() if i < layers - 1 else x
        x = x.reshape(-1, *size)
        return spread_rows(x, rows, scores, NOTHING)


def why_not_one_stage(model: Any) -> list[str]:
    """What keeps a one-stage detector from being exported whole, in sentences."""
    head = model.bbox_head
    name = type(head).__name__
    method = getattr(head, '_predict_by_feat_single', None)
    owner = getattr(method, '__qualname__', '').partition('.')[0]
    if owner not in ('BaseDenseHead', 'RTMDetHead', 'RTMDetInsHead'):
        return [f'its head, a {name}, predicts in a way of its own']
    reasons = why_not_coder(head) + why_not_nms(head.test_cfg)
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        reasons.append('its classes have an activation of their own')
    return reasons
