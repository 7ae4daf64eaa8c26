"""Choosing and reading boxes in operators that ONNX has, for whole batches.

What has no fixed number has one here: rows that hold nothing have a score of -1. mmdet's own
functions work picture by picture, on lists of different lengths, which no graph can express.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.registration import define

# Its operators, which programs of torch.export hold, are registered by the import.
with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401

#: Score of a row that holds nothing; every score of a box is higher.
NOTHING = -1.0


def _kept_scores(boxes: Tensor, scores: Tensor, limit: int, iou: float, threshold: float) -> Tensor:
    kept = torch.full_like(scores, NOTHING)
    for batch, group in (scores > threshold).any(-1).nonzero().tolist():
        rows = (scores[batch, group] > threshold).nonzero()[:, 0]
        best = torch.ops.torchvision.nms(boxes[batch, rows], scores[batch, group, rows], iou)
        rows = rows[best[:limit]]
        kept[batch, group, rows] = scores[batch, group, rows]
    return kept


# An operator, so that torch.export keeps it whole: its loops depend on values.
define(
    'kept_scores',
    '(Tensor boxes, Tensor scores, int limit, float iou, float threshold) -> Tensor',
    _kept_scores,
    lambda boxes, scores, *settings: torch.empty_like(scores),
)


class _KeptScores(torch.autograd.Function):
    """Scores after non-maximum suppression, see :func:`kept_scores`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return torch.ops.overlock_mm.kept_scores(*arguments)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, limit: int, iou: float, threshold: float) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op('Constant', value_t=torch.tensor([value], dtype=dtype))

        selected = g.op(
            'NonMaxSuppression',
            boxes,
            scores,
            constant(limit, torch.int64),
            constant(iou, torch.float32),
            constant(threshold, torch.float32),
        )
        nothing = torch.tensor([NOTHING])
        empty = g.op('ConstantOfShape', g.op('Shape', scores), value_t=nothing)
        kept = g.op('ScatterND', empty, selected, g.op('GatherND', scores, selected))
        return kept.setType(scores.type())


def kept_scores(
    boxes: Tensor, scores: Tensor, *, limit: int, iou: float, threshold: float
) -> Tensor:
    """Scores of the boxes that remain after non-maximum suppression, the others -1.

    Args:
        boxes: [B, N, 4], corners.
        scores: [B, G, N]: boxes compete within each of the G groups.
        limit: Boxes to keep in a group, at most.
        iou: A box goes if its IoU with a better one exceeds this.
        threshold: Boxes whose score does not exceed it are left out.
    """
    return _KeptScores.apply(boxes, scores, limit, iou, threshold)


def kept_scores_by_label(
    boxes: Tensor, scores: Tensor, labels: Tensor, count: int, **settings: Any
) -> Tensor:
    """:func:`kept_scores`, [B, N], where boxes of one label compete.

    Args:
        boxes: [B, N, 4].
        scores: [B, N].
        labels: [B, N] or [N], from 0 to ``count`` - 1.
        count: How many labels there are.
        **settings: Settings of :func:`kept_scores`.
    """
    groups = torch.arange(count)[:, None] == labels.unsqueeze(-2)
    by_group = torch.where(groups, scores[:, None], NOTHING)
    return kept_scores(boxes, by_group, **settings).amax(1)


def best(scores: Tensor, limit: int, fixed_size: bool) -> tuple[Tensor, Tensor]:
    """The highest scores of [B, N] and their places, [B, min(limit, N)] each."""
    count: Any = scores.shape[1]
    if fixed_size:
        return scores.topk(min(limit, int(count)))
    # As a tensor it stays variable under tracing.
    return scores.topk(torch.minimum(torch.as_tensor(count), torch.tensor(limit)))  # type: ignore[arg-type]


def take(values: Tensor, places: Tensor) -> Tensor:
    """[B, N, C] at the places [B, K], [B, K, C]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def filled_rows(scores: Tensor, fixed_rows: bool) -> Tensor:
    """Indices into the flattened [B, N] of what holds something, [K].

    The first row is always among them: engines do not take layers with an empty batch.

    Args:
        scores: [B, N].
        fixed_rows: Take all rows, so that K does not depend on values.
    """
    flat = scores.flatten()
    if fixed_rows:
        return torch.arange(flat.shape[0])
    first = torch.arange(flat.shape[0]) == 0
    return ((flat > NOTHING / 2) | first).nonzero()[:, 0]


def spread_rows(values: Tensor, rows: Tensor, like: Tensor, fill: float) -> Tensor:
    """The opposite of taking :func:`filled_rows` of ``like``: [K, ...] to [B, N, ...]."""
    batch, count = like.shape[:2]
    empty = torch.full((batch * count, *values.shape[1:]), fill, dtype=values.dtype)
    spread = empty.index_put((rows,), values)
    return spread.reshape(batch, count, *values.shape[1:])


def decode(coder: Any, priors: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    """Boxes of deltas as the coder of a head reads them, within the picture.

    Args:
        coder: A ``DeltaXYWHBBoxCoder`` or ``DistancePointBBoxCoder`` of mmdet.
        priors: [..., 4] boxes or [..., 2] points.
        deltas: [..., 4].
        limits: [..., 4], width, height, width and height of the picture.
    """
    if type(coder).__name__ == 'DistancePointBBoxCoder':
        boxes = torch.cat([priors - deltas[..., :2], priors + deltas[..., 2:]], -1)
    else:
        deltas = deltas * torch.tensor(coder.stds) + torch.tensor(coder.means)
        size = priors[..., 2:] - priors[..., :2]
        centre = (priors[..., 2:] + priors[..., :2]) * 0.5 + size * deltas[..., :2]
        # The widest change of a side, which mmdet's coder has as the default of an argument.
        limit = abs(math.log(16 / 1000))
        half = size * deltas[..., 2:].clamp(-limit, limit).exp() * 0.5
        boxes = torch.cat([centre - half, centre + half], -1)
    if coder.clip_border:
        boxes = torch.minimum(boxes.clamp(min=0), limits)
    return boxes


class _RoIAlign(torch.autograd.Function):
    """One level's features under boxes, as mmcv's ``layer`` gives them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, images: Tensor, layer: Any) -> Tensor:
        return torch.ops.torchvision.roi_align(
            features,
            torch.cat([images[:, None].to(boxes), boxes], 1),
            layer.spatial_scale,
            *layer.output_size,
            layer.sampling_ratio,
            layer.aligned,
        )

    @staticmethod
    def symbolic(g: Any, features: Any, boxes: Any, images: Any, layer: Any) -> Any:
        height, width = layer.output_size
        return g.op(
            'RoiAlign',
            features,
            boxes,
            images,
            coordinate_transformation_mode_s='half_pixel' if layer.aligned else 'output_half_pixel',
            mode_s='avg',
            output_height_i=height,
            output_width_i=width,
            sampling_ratio_i=layer.sampling_ratio,
            spatial_scale_f=layer.spatial_scale,
        )


def pool(
    extractor: Any, maps: tuple[Tensor, ...], boxes: Tensor, images: Tensor, fixed_rows: bool
) -> Tensor:
    """Features under boxes, each from the level for its size, [K, C, h, w].

    Args:
        extractor: A ``SingleRoIExtractor`` of mmdet.
        maps: [B, C, H, W] of each level, at least as many as the extractor reads.
        boxes: [K, 4].
        images: [K], which image of the batch each is in, int64.
        fixed_rows: Read all levels for all boxes, so that no shape depends on values.
    """
    layers = extractor.roi_layers
    with_image = torch.cat([images[:, None].to(boxes), boxes], 1)
    levels = extractor.map_roi_levels(with_image, len(layers))
    if fixed_rows:
        total: Any = 0.0
        for level, layer in enumerate(layers):
            own = (levels == level)[:, None, None, None]
            total = total + torch.where(own, _RoIAlign.apply(maps[level], boxes, images, layer), 0)
        return total
    order, pooled = [], []
    for level, layer in enumerate(layers):
        rows = (levels == level).nonzero()[:, 0]
        order.append(rows)
        # OpenVINO asks for the width of what NonZero has led to.
        chosen = boxes[rows].reshape(-1, 4)
        pooled.append(_RoIAlign.apply(maps[level], chosen, images[rows].reshape(-1), layer))
    return torch.cat(pooled)[torch.cat(order).argsort()]
