"""What a model sees in a picture, as arrays that draw themselves and become JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from overlock_mm.runtime.drawing import draw_boxes, draw_label_map, draw_lines
from overlock_mm.runtime.masks import run_lengths

Palette = tuple[tuple[int, ...], ...]


@dataclass
class Result(ABC):
    """What all results have.

    Attributes:
        image: The picture, uint8 [H, W, 3].
        classes: Names of all classes.
        palette: Their colours.
        source: Where the picture comes from, if it is a file.
    """

    image: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    palette: Palette = field(repr=False)
    source: str | None

    def name_of(self, label: int) -> str:
        """The name of a class; its number where names are not known."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    @abstractmethod
    def draw(self) -> Image.Image:
        """The picture with what was seen in it; small ones are enlarged."""

    @abstractmethod
    def to_dict(self) -> Any:
        """Plain data for JSON."""


@dataclass
class Detections(Result):
    """Objects, most certain first.

    Attributes:
        boxes: [N, 4], float32: left, top, right and bottom in pixels of the picture.
        scores: [N], float32.
        labels: [N], int64.
        masks: [N, H, W], bool, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        return [self.name_of(int(label)) for label in self.labels]

    def above(self, score: float) -> Detections:
        """Those with a higher score."""
        keep = self.scores > score
        masks = None if self.masks is None else self.masks[keep]
        return Detections(
            self.image,
            self.classes,
            self.palette,
            self.source,
            self.boxes[keep],
            self.scores[keep],
            self.labels[keep],
            masks,
        )

    def draw(self, score: float = 0.3) -> Image.Image:
        """The picture with boxes, masks and names of the objects above a score."""
        shown = self.above(score)
        texts = [f'{name} {s:.2f}' for name, s in zip(shown.names, shown.scores, strict=True)]
        colors = [self.palette[int(i) % len(self.palette)] for i in shown.labels]
        return draw_boxes(self.image, shown.boxes, texts, colors, shown.masks)

    def to_dict(self) -> list[dict[str, Any]]:
        """One entry for each object: class, score, box, and its mask in COCO's code."""
        entries = []
        for i, name in enumerate(self.names):
            entry = {
                'class': name,
                'score': round(float(self.scores[i]), 4),
                'box': [round(float(value), 1) for value in self.boxes[i]],
            }
            if self.masks is not None:
                entry['mask'] = run_lengths(self.masks[i])
            entries.append(entry)
        return entries

    def to_coco(self, image_id: int, category_ids: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """Entries of a result file that COCO's evaluation reads.

        Args:
            image_id: Number of the picture in the annotations.
            category_ids: Number of each class; without them a label counts from 1.
        """
        entries = []
        for i, (box, label) in enumerate(zip(self.boxes.tolist(), self.labels, strict=True)):
            x, y, right, bottom = box
            entry = {
                'image_id': image_id,
                'category_id': category_ids[label] if category_ids else int(label) + 1,
                'bbox': [x, y, right - x, bottom - y],
                'score': float(self.scores[i]),
            }
            if self.masks is not None:
                entry['segmentation'] = run_lengths(self.masks[i])
            entries.append(entry)
        return entries


@dataclass
class Segmentation(Result):
    """A class for each pixel.

    Attributes:
        label_map: [H, W], int64.
    """

    label_map: np.ndarray = field(repr=False)

    def draw(self) -> Image.Image:
        """The picture below the colours of its classes."""
        return draw_label_map(self.image, self.label_map, self.palette, self.classes)

    def to_dict(self) -> dict[str, float]:
        """The share of the picture that each class found has, largest first."""
        labels, counts = np.unique(self.label_map, return_counts=True)
        shares = sorted(
            (
                (count / self.label_map.size, self.name_of(label))
                for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
            ),
            reverse=True,
        )
        return {name: round(share, 4) for share, name in shares}


@dataclass
class Classification(Result):
    """Probabilities of all classes.

    Attributes:
        scores: [classes], float32.
        labels: The most probable class or, where a picture has several, those above the threshold.
    """

    scores: np.ndarray
    labels: np.ndarray

    @property
    def names(self) -> list[str]:
        """The names of :attr:`labels`."""
        return [self.name_of(int(label)) for label in self.labels]

    def best(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities."""
        order = np.argsort(-self.scores, kind='stable')[:count]
        return [(self.name_of(int(i)), float(self.scores[i])) for i in order]

    def draw(self) -> Image.Image:
        """The picture with its most probable classes."""
        return draw_lines(self.image, [f'{name} {score:.2f}' for name, score in self.best()])

    def to_dict(self) -> list[dict[str, Any]]:
        """Up to five classes with their probabilities, most probable first."""
        return [{'class': name, 'score': round(score, 4)} for name, score in self.best()]
