"""Non-maximum suppression in its variants.

Boxes are (N, 4) as (x1, y1, x2, y2). Equal scores keep the order of the input; mmcv's sort on the
CPU is not stable. ``offset`` is 1 where the corners are pixels, so that a box is
``x2 - x1 + 1`` wide, else 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, torchvision_operator, widened

_NMS = Family(
    ('batched_nms', 'nms'),
    'torchvision',
    'Boxes of equal scores keep their order, which mmcv on the CPU does not.',
)
_SOFT = Family(
    ('soft_nms',),
    'torch',
    'Equal scores as in nms. Two boxes without an area have an IoU of 0, not NaN.',
)
_MATCH = Family(
    ('nms_match',),
    'torch',
    'Equal scores as in nms.',
)
_LINE = Family(
    ('line_nms',),
    'torch',
    'Lanes are compared in sorted order; mmcv mixes it with the order of the input.',
)


@_NMS.operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return indices of the boxes that are kept, best score first, int64.

    A box goes if its IoU with a kept one of a higher score exceeds the threshold.
    """
    boxes, scores = widened(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # Compared in the dtype of the boxes, or an IoU of 3/5 would exceed a threshold of 0.6.
    threshold = boxes.new_tensor(iou_threshold, device='cpu').item()
    return torchvision_operator('nms')(boxes, scores, threshold)


@_SOFT.operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017), on the CPU like mmcv's.

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: (N, 5), receives kept boxes and their lowered scores in its first rows.
        iou_threshold: IoU from which a score is lowered, for methods 0 and 1.
        sigma: Width of the Gaussian of method 2.
        min_score: Boxes whose score falls below it while lowered go.
        method: 0 sets scores to 0, 1 lowers them linearly, 2 by a Gaussian.
        offset: 0 or 1.

    Returns:
        Indices of the kept boxes in the order in which they were picked, int64.
    """
    corners, left = (tensor.numpy().copy() for tensor in widened(boxes, scores))
    one = corners.dtype.type
    areas = _areas(corners, offset)
    candidates = np.arange(len(corners))
    picked, picked_scores = [], []
    while len(candidates):
        best = candidates[np.argmax(left[candidates])]
        picked.append(best)
        picked_scores.append(left[best])
        candidates = candidates[candidates != best]
        overlap = _ious(corners, areas, best, candidates, offset)
        if method == 2:
            factor = np.exp(-(overlap * overlap) / one(sigma))
        else:
            lowered = overlap >= one(iou_threshold)
            factor = np.where(lowered, one(0) if method == 0 else 1 - overlap, one(1))
        left[candidates] *= factor
        candidates = candidates[~(left[candidates] < one(min_score))]
    keep = torch.tensor(picked, dtype=torch.int64)
    if picked:
        dets[: len(picked), :4] = boxes[keep]
        dets[: len(picked), 4] = torch.from_numpy(np.array(picked_scores))
    return keep


@_MATCH.operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return groups of boxes: a kept one, then those that it suppresses, by decreasing score.

    Unlike :func:`nms`, an IoU that equals the threshold suppresses.

    Args:
        dets: (N, 5), boxes and scores, on the CPU.
        iou_threshold: See above.
    """
    array = widened(dets)[0].numpy()
    corners = array[:, :4]
    areas = _areas(corners, 0)
    candidates = np.argsort(-array[:, 4], kind='stable')
    groups = []
    while len(candidates):
        best, candidates = candidates[0], candidates[1:]
        overlap = _ious(corners, areas, best, candidates, 0)
        suppressed = overlap >= array.dtype.type(iou_threshold)
        groups.append([int(best), *map(int, candidates[suppressed])])
        candidates = candidates[~suppressed]
    return groups


@_LINE.operator
def line_nms_forward(
    boxes: Tensor, scores: Tensor, overlap: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS of lanes (Zheng et al., CLRNet, CVPR 2022), which mmdet's CLRHead uses.

    A lane goes if its mean horizontal distance to a kept one of a higher score, over the rows
    where both are, is below the threshold. mmcv's kernel takes one lane of each pair from the
    unsorted list; this is the definition.

    Args:
        boxes: (N, 5 + rows); column 2 is the first row as a fraction of the last, column 4 the
            number of rows, and from column 5 on stand the horizontal positions.
        scores: (N,).
        overlap: The threshold.
        top_k: Lanes to keep at most.

    Returns:
        Indices of the kept lanes, (N,) filled up with 0; their number, (); and for each lane the
        position, from 1, of the kept one that it belongs to, or 0.
    """
    lanes, order = boxes.cpu(), scores.sort(descending=True, stable=True).indices.tolist()
    rows = lanes.size(1) - 5
    first = (lanes[:, 2] * (rows - 1) + 0.5).int().tolist()
    length = lanes[:, 4].int().tolist()
    last = [min(start + count - 1, rows - 1) for start, count in zip(first, length, strict=True)]

    def near(one: int, other: int) -> bool:
        start, end = max(first[one], first[other]), min(last[one], last[other])
        if end < start or start < 0:
            return False
        span = slice(5 + start, 6 + end)
        distance = (lanes[one, span].double() - lanes[other, span].double()).abs().sum()
        return distance.item() < overlap * (end - start + 1)

    keep: list[int] = []
    parent = [0] * len(order)
    removed = [False] * len(order)
    for position, index in enumerate(order):
        if len(keep) == top_k:
            break
        if removed[index]:
            continue
        keep.append(index)
        parent[index] = len(keep)
        for other in order[position + 1 :]:
            if near(index, other):
                removed[other] = True
                parent[other] = len(keep)
    padded = keep + [0] * (len(order) - len(keep))
    return (
        torch.tensor(padded, dtype=torch.int64, device=boxes.device),
        torch.tensor(len(keep), dtype=torch.int64, device=boxes.device),
        torch.tensor(parent, dtype=torch.int64, device=boxes.device),
    )


def _areas(corners: np.ndarray, offset: int) -> np.ndarray:
    width, height = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    return (width + offset) * (height + offset)


def _ious(
    corners: np.ndarray, areas: np.ndarray, one: int, others: np.ndarray, offset: int
) -> np.ndarray:
    """Return the IoU of one box with others, 0 between two without an area."""
    low = np.maximum(corners[one, :2], corners[others, :2])
    high = np.minimum(corners[one, 2:], corners[others, 2:])
    sides = np.maximum(high - low + offset, 0)
    inter = sides[:, 0] * sides[:, 1]
    union = areas[one] + areas[others] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union != 0)
