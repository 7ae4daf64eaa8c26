"""Faster, Mask and Cascade R-CNN as modules from images to boxes and masks."""

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
    best,
    decode,
    filled_rows,
    kept_scores,
    kept_scores_by_label,
    pool,
    spread_rows,
    take,
)


class ExportableTwoStage(ExportableDetector):
    """Faster, Mask and Cascade R-CNN.

    Args:
        model: A detector of mmdet for which :func:`why_not_two_stage` has no reasons.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        roi_head = self.model.roi_head
        self.max_detections = roi_head.test_cfg.max_per_img
        self.stages = list(zip(*_stages(roi_head, 'bbox'), strict=True))
        self.mask_stages = list(zip(*_stages(roi_head, 'mask'), strict=True))
        if self.mask_stages:
            self.output_names = (*self.output_names, 'masks')
        self._describe(roi_head.test_cfg, 'box' if self.mask_stages else None)

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """See :class:`ExportableDetector`; ``masks`` [B, D, 28, 28] are probabilities in a box."""
        maps = self.model.extract_feat(image)
        limits = self._limits(image_size)
        kept, boxes, labels = self._boxes(maps, *self._proposals(maps, limits), limits)
        scores, _, outputs = self._chosen(kept, boxes, labels)
        if not self.mask_stages:
            return outputs
        return *outputs, self._masks(maps, scores, *outputs[:3:2])

    def _proposals(self, maps: tuple[Tensor, ...], limits: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R, 4] boxes that may hold something, and their scores [B, R]."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        logits, deltas = head(maps)
        scores = [probabilities(head, level) for level in logits]
        score, _, level, prior, delta = self._candidates(
            head, scores, self._priors(head, logits), cfg.nms_pre, deltas
        )
        boxes = decode(head.bbox_coder, prior, delta, limits[:, None])
        score = without_small(cfg, boxes, score)
        kept = kept_scores_by_label(
            boxes,
            score,
            level,
            len(logits),
            limit=cfg.max_per_img,
            iou=cfg.nms.iou_threshold,
            threshold=NOTHING / 2,
        )
        score, place = best(kept, cfg.max_per_img, self.fixed_size)
        return take(boxes, place), score

    def _boxes(
        self, maps: tuple[Tensor, ...], proposals: Tensor, proposal_scores: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Kept score [B, C * R], box [B, C * R, 4] and label for each class and proposal."""
        rows = filled_rows(proposal_scores, self.fixed_rows)
        count = proposal_scores.shape[1]
        images = torch.div(rows, count, rounding_mode='floor')
        boxes, limits = proposals.flatten(0, 1)[rows], limits[images]
        logits: Any = 0.0
        for number, (extractor, head) in enumerate(self.stages, 1):
            stage_logits, deltas = head(pool(extractor, maps, boxes, images, self.fixed_rows))
            logits = logits + stage_logits
            deltas = deltas.reshape(deltas.shape[0], -1, 4)
            if number < len(self.stages):
                label = stage_logits[:, :-1].argmax(1) * (0 if head.reg_class_agnostic else 1)
                delta = take(deltas, label[:, None])[:, 0]
                boxes = decode(head.bbox_coder, boxes, delta, limits)
        scores = (logits / len(self.stages)).softmax(-1)[:, :-1]
        boxes = decode(head.bbox_coder, boxes[:, None], deltas, limits[:, None])
        classes = head.num_classes
        boxes = boxes.expand(-1, classes, -1)
        # [B, C, R, ...]
        scores = spread_rows(scores, rows, proposal_scores, NOTHING).transpose(1, 2)
        boxes = spread_rows(boxes, rows, proposal_scores, 0.0).transpose(1, 2)
        # The mandatory row may be empty.
        scores = torch.where(proposal_scores[:, None] > NOTHING / 2, scores, NOTHING)
        cfg = self.model.roi_head.test_cfg
        kept = kept_scores(
            boxes.flatten(0, 1),
            scores.flatten(0, 1)[:, None],
            limit=cfg.max_per_img,
            iou=cfg.nms.iou_threshold,
            threshold=cfg.score_thr,
        )
        labels = torch.arange(classes)[:, None].expand_as(scores)
        return kept.reshape(-1, classes * count), boxes.flatten(1, 2), labels.flatten(1, 2)

    def _masks(
        self, maps: tuple[Tensor, ...], scores: Tensor, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        rows = filled_rows(scores, self.fixed_rows)
        images = torch.div(rows, scores.shape[1], rounding_mode='floor')
        boxes, labels = boxes.flatten(0, 1)[rows], labels.flatten()[rows].clamp(min=0)
        masks: Any = 0.0
        for extractor, head in self.mask_stages:
            logits = head(pool(extractor, maps, boxes, images, self.fixed_rows))
            label = torch.zeros_like(labels) if head.class_agnostic else labels
            place = label[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            masks = masks + logits.gather(1, place)[:, 0].sigmoid()
        return spread_rows(masks / len(self.mask_stages), rows, scores, 0.0)


def why_not_two_stage(model: Any) -> list[str]:
    """What keeps a two-stage detector from being exported whole, in sentences."""
    roi_head = model.roi_head
    reasons = []
    if type(roi_head).__name__ not in ('StandardRoIHead', 'CascadeRoIHead'):
        reasons.append(f'its RoI head is a {type(roi_head).__name__}')
    if type(model.rpn_head).__name__ != 'RPNHead':
        reasons.append(f'its proposals are of a {type(model.rpn_head).__name__}')
    if reasons:
        return reasons
    extractors, heads = _stages(roi_head, 'bbox')
    mask_extractors, _ = _stages(roi_head, 'mask')
    for extractor in [*extractors, *mask_extractors]:
        if type(extractor).__name__ != 'SingleRoIExtractor':
            reasons.append(f'it has a {type(extractor).__name__}')
        elif any(getattr(layer, 'pool_mode', '') != 'avg' for layer in extractor.roi_layers):
            reasons.append('its RoIs are not pooled by averaging RoIAlign')
    reasons += [why for head in [model.rpn_head, *heads] for why in why_not_coder(head)]
    if any(getattr(head, 'custom_cls_channels', False) for head in heads):
        reasons.append('its classes have an activation of their own')
    for cfg in (model.rpn_head.test_cfg, roi_head.test_cfg):
        reasons += why_not_nms(cfg)
    return sorted(set(reasons))


def _stages(roi_head: Any, kind: str) -> tuple[list[Any], list[Any]]:
    """RoI extractors and heads, as many as there are stages; none without masks."""
    head = getattr(roi_head, f'{kind}_head', None)
    if head is None:
        return [], []
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    extractor = getattr(roi_head, f'{kind}_roi_extractor', None)
    if extractor is None:  # mmdet's StandardRoIHead then shares that of the boxes
        extractor = roi_head.bbox_roi_extractor
    extractors = list(extractor) if isinstance(extractor, nn.ModuleList) else [extractor]
    return extractors * (len(heads) // len(extractors)), heads
