"""What the exports of whole detectors have in common.

They call mmdet's own layers and compute what its ``predict`` does, for all images of a batch at
once and with a fixed number of rows for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from overlock_mm.export.parts import Exportable, size_divisor
from overlock_mm.export.selection import NOTHING, best, take


class ExportableDetector(Exportable):
    """What the exports of detectors have in common.

    Attributes:
        max_detections: Rows of the outputs for each image.
    """

    task = 'detection'
    input_names = ('image', 'image_size')
    output_names: tuple[str, ...] = ('boxes', 'scores', 'labels', 'count')
    max_detections: int

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.size_divisor = size_divisor(model)

    def _describe(self, cfg: Any, masks: str | None) -> None:
        self.head = {'max_detections': self.max_detections, 'score_threshold': cfg.score_thr}
        if masks is not None:
            self.head |= {'masks': masks, 'threshold': cfg.mask_thr_binary}

    def inputs_of(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images [B, C, H, W] without padding, and their sizes."""
        return image, torch.tensor([image.shape[-2:]] * len(image))

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """The largest difference of detections, in parts of the largest value of each output.

        Detections are compared in pairs, as those of nearly one score may change places. One
        without a partner counts with its distance to the lowest score of its image: such as that
        may cross the threshold.
        """
        if any(a.shape != e.shape for a, e in zip(actual, expected, strict=True)):
            return float('inf')
        scales = [1.0] * len(expected)
        scales[0] = max(expected[0].max().item(), 1.0)
        for i, extra in enumerate(expected[4:], 4):
            scales[i] = max(extra.abs().max().item(), 1.0)
        largest = 0.0
        for image in range(len(expected[0])):
            a, e = ([tensor[image] for tensor in outputs] for outputs in (actual, expected))
            largest = max(largest, _difference_of_detections(a, e, scales))
        return largest

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """Detections of each image, best first; rows beyond ``count`` are 0 and their label -1.

        Args:
            image: [B, C, H, W].
            image_size: [B, 2], int64: height and width without the padding, to which boxes are
                clipped.

        Returns:
            ``boxes`` [B, D, 4] as corners in pixels of ``image``; ``scores`` [B, D]; ``labels``
            [B, D] and ``count`` [B], int64; further ones by :attr:`output_names`.
        """
        raise NotImplementedError

    def _limits(self, image_size: Tensor) -> Tensor:
        return image_size.flip(-1).repeat(1, 2).float()

    def _candidates(
        self,
        head: Any,
        scores: list[Tensor],
        priors: list[Tensor],
        limit: int,
        *values: list[Tensor],
    ) -> list[Tensor]:
        """Each level's rows with the best scores, and the rows of the values.

        Args:
            head: A dense head.
            scores: [B, N * classes] of each level.
            priors: [N, 2 or 4] of each level.
            limit: Rows of a level.
            *values: [B, M, N, ...] maps of each level.

        Returns:
            Of all levels together [B, K]: scores, labels and levels; [B, K, 2 or 4] priors;
            [B, K, M] for each of the values.
        """
        levels = []
        for level, (score, prior, *maps) in enumerate(zip(scores, priors, *values, strict=True)):
            score, place = best(score, limit, self.fixed_size)
            classes = head.cls_out_channels if head.use_sigmoid_cls else head.cls_out_channels - 1
            row = torch.div(place, classes, rounding_mode='floor')
            rows = [take(_rows(each, prior.shape[0]), row) for each in maps]
            levels.append(
                [score, place % classes, torch.full_like(place, level), prior[row], *rows]
            )
        return [torch.cat(parts, 1) for parts in zip(*levels, strict=True)]

    def _size(self, maps: Tensor) -> tuple[Any, Any]:
        height, width = maps.shape[-2:]
        return (int(height), int(width)) if self.fixed_size else (height, width)

    def _priors(self, head: Any, maps: list[Tensor], **options: Any) -> list[Tensor]:
        sizes = [self._size(level) for level in maps]
        return head.prior_generator.grid_priors(sizes, dtype=torch.float32, device='cpu', **options)

    def _chosen(
        self, kept: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The best of [B, N] kept scores, their places, and the outputs as far as all have them."""
        scores, place = best(kept, self.max_detections, self.fixed_size)
        real = scores > NOTHING / 2
        boxes = torch.where(real[..., None], take(boxes, place), 0.0)
        labels = torch.where(real, labels.gather(1, place), -1)
        return scores, place, (boxes, scores.clamp(min=0), labels, real.sum(1))


def why_not_coder(head: Any) -> list[str]:
    """What :func:`~overlock_mm.export.selection.decode` does not know about the boxes of a head."""
    coder = getattr(head, 'bbox_coder', None)
    if coder is None:  # YOLOX
        return [f'its {type(head).__name__} decodes boxes in a way of its own']
    name = type(coder).__name__
    known = ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder')
    if name not in known or getattr(coder, 'add_ctr_clamp', False):
        return [f'its boxes are coded by a {name} of another kind than {" and ".join(known)}']
    return []


def why_not_nms(cfg: Any) -> list[str]:
    """What a test config asks for that ``kept_scores`` does not do."""
    reasons = []
    if cfg.nms.get('type', 'nms') != 'nms':
        reasons.append(f'ONNX has no {cfg.nms.type}, only plain non-maximum suppression')
    if cfg.nms.get('class_agnostic'):
        reasons.append('its classes compete in non-maximum suppression')
    limit = cfg.get('max_per_img', -1)
    if limit <= 0:
        reasons.append(f'its number of boxes is not bounded (max_per_img={limit})')
    return reasons


def _rows(values: Tensor, count: Any) -> Tensor:
    """[B, A * M, H, W] of A priors at each place to [B, H * W * A, M]."""
    values = values.permute(0, 2, 3, 1)
    return values.reshape(values.shape[0], count, -1)


def probabilities(head: Any, logits: Tensor) -> Tensor:
    """[B, A * classes, H, W] to [B, H * W * A * classes], without the background."""
    logits = logits.permute(0, 2, 3, 1)
    if head.use_sigmoid_cls:
        return logits.flatten(1).sigmoid()
    logits = logits.reshape(logits.shape[0], -1, head.cls_out_channels)
    return logits.softmax(-1)[..., :-1].flatten(1)


def without_small(cfg: Any, boxes: Tensor, scores: Tensor) -> Tensor:
    """Scores [B, N], those of boxes smaller than the config allows -1."""
    smallest = cfg.get('min_bbox_size', -1)
    if smallest < 0:
        return scores
    large = (boxes[..., 2:] - boxes[..., :2] > smallest).all(-1)
    return torch.where(large, scores, NOTHING)


def _difference_of_detections(
    actual: list[Tensor], expected: list[Tensor], scales: list[float]
) -> float:
    """See ``ExportableDetector.difference``; outputs of one image."""
    counts = int(actual[3]), int(expected[3])
    if not any(counts):
        return 0.0
    scores = [side[1][:count] for side, count in zip((actual, expected), counts, strict=True)]
    lowest = min(side.min().item() for side in scores if len(side))
    free = list(range(counts[0]))
    largest = 0.0
    for row in range(counts[1]):
        partners = [i for i in free if actual[2][i] == expected[2][row]]
        distances = [
            max(
                (actual[k][i] - expected[k][row]).abs().max().item() / scales[k]
                for k in range(len(expected))
                if k not in (2, 3)
            )
            for i in partners
        ]
        margin = expected[1][row].item() - lowest
        if distances and min(distances) <= max(margin, 1e-3):
            free.remove(partners[distances.index(min(distances))])
            largest = max(largest, min(distances))
        else:
            largest = max(largest, margin)
    return max([largest, *(actual[1][i].item() - lowest for i in free)])
