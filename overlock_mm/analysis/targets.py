"""What an activation map explains: a class of a picture, of a place or of a box, as one score."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overlock_mm.analysis.networks import Network
from overlock_mm.analysis.views import View, task_of

#: Smallest IoU of a box given by its corners with the detection that it refers to.
MIN_IOU = 0.1


class NoTargetError(ValueError):
    """There is nothing to explain in this picture, though there may be in others."""


class Score(nn.Module):
    """A model that returns one differentiable number per image.

    Args:
        model: A model with frozen parameters; gradients flow to the image and all activations.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to scores [B, 1]."""
        # Parameters are frozen, so without this activations would ask for no gradient.
        return self._score(inputs.detach().requires_grad_())[:, None]

    @abstractmethod
    def _score(self, inputs: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to scores [B]."""


class ClassScore(Score):
    """The logit of a class of a classifier."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__(model)
        self.label = label

    def _score(self, inputs: Tensor) -> Tensor:
        return self.model(inputs, mode='tensor')[:, self.label]


class RegionScore(Score):
    """The mean logit of a class over a region of a segmentor's output.

    Args:
        model: The segmentor.
        label: The class.
        region: bool [H, W], over the input.
    """

    region: Tensor

    def __init__(self, model: nn.Module, label: int, region: Tensor) -> None:
        super().__init__(model)
        self.label = label
        self.register_buffer('region', region)

    def _score(self, inputs: Tensor) -> Tensor:
        return segmentation_logits(self.model, inputs)[:, self.label, self.region].mean(1)


class BoxScore(Score):
    """The logit of a class of a fixed box, from the box heads of a two-stage detector.

    The region proposals play no part in it: the box stays fixed while the image changes.
    The stages of a cascade are averaged, as in its predictions.

    Args:
        model: The detector.
        label: The class.
        box: [4], x1, y1, x2, y2 in the input.
    """

    box: Tensor

    def __init__(self, model: nn.Module, label: int, box: Tensor) -> None:
        super().__init__(model)
        self.label = label
        self.register_buffer('box', box)

    def _score(self, inputs: Tensor) -> Tensor:
        head = self.model.roi_head
        maps = self.model.extract_feat(inputs)
        index = torch.arange(len(inputs), device=inputs.device)[:, None]
        rois = torch.cat((index, self.box.expand(len(inputs), 4)), 1)
        logits = []
        for extractor, box_head in zip(
            _stages(head.bbox_roi_extractor), _stages(head.bbox_head), strict=True
        ):
            features = extractor(maps[: extractor.num_inputs], rois)
            if head.with_shared_head:
                features = head.shared_head(features)
            logits.append(box_head(features)[0][:, self.label])
        return torch.stack(logits).mean(0)


class FoundScore(Score):
    """The score of the detection of a class that overlaps most with a box; for any detector.

    Where the class is no longer found near the box, the score is zero.

    Args:
        model: The detector.
        label: The class.
        box: [4], x1, y1, x2, y2 in the input.
        sample: Data sample with the meta information of the image.
    """

    box: Tensor

    def __init__(self, model: nn.Module, label: int, box: Tensor, sample: Any) -> None:
        super().__init__(model)
        self.label = label
        self.sample = sample
        self.register_buffer('box', box)

    def _score(self, inputs: Tensor) -> Tensor:
        samples = [deepcopy(self.sample) for _ in inputs]
        results = self.model.predict(inputs, samples, rescale=False)
        return torch.stack([self._best(result.pred_instances) for result in results])

    def _best(self, instances: Any) -> Tensor:
        instances = instances[instances.labels == self.label]
        overlaps = _overlaps(self.box, instances.bboxes)
        if not len(overlaps) or overlaps.max() < MIN_IOU:
            return instances.scores.new_zeros(())
        return instances.scores[overlaps.argmax()]


@dataclass(frozen=True)
class Target:
    """Something to explain.

    Args:
        score: The score as a differentiable scalar.
        label: Index of the class.
        confidence: The model's probability or score of it.
        box: x1, y1, x2, y2 of the box or region in the input.
        point: x, y in the input.
    """

    score: Score
    label: int
    confidence: float
    box: tuple[float, ...] | None = None
    point: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Question:
    """What the user asked about; None is for the model to choose.

    Args:
        name: A class, by name or index.
        point: x, y in pixels of the file, for segmentors.
        region: x1, y1, x2, y2 in pixels of the file, for segmentors.
        box: x1, y1, x2, y2 in pixels of the file, of a detection.
        rank: Which of the detections, the most certain being 1.
    """

    name: str | None = None
    point: Sequence[float] | None = None
    region: Sequence[float] | None = None
    box: Sequence[float] | None = None
    rank: int | None = None

    def check(self, network: Network) -> None:
        """Check that the question fits a network, before any work.

        Raises:
            ValueError: It does not.
        """
        task = task_of(network.cfg)
        places = {
            'a point': (self.point, 'segmentation'),
            'a region': (self.region, 'segmentation'),
            'a box': (self.box or self.rank, 'detection'),
        }
        for what, (given, wanted) in places.items():
            if given is not None and task != wanted:
                raise ValueError(f'{what} is a target for {wanted}, {network.name} does {task}.')
        if self.point is not None and self.region is not None:
            raise ValueError('Give a point or a region, not both.')
        if self.rank is not None and self.rank < 1:
            raise ValueError(f'Detections are counted from 1, the most certain; got {self.rank}.')
        for corners in (self.region, self.box):
            if corners is not None and not (corners[0] < corners[2] and corners[1] < corners[3]):
                raise ValueError(
                    f'Corners are x1 y1 x2 y2 with x1 < x2 and y1 < y2, got {list(corners)}.'
                )
        if self.name is not None:
            label_of(self.name, network)


def label_of(name: str, network: Network) -> int:
    """Return the index of a class, given by its name or the index itself.

    Raises:
        ValueError: There is no such class.
    """
    if name in network.classes:
        return network.classes.index(name)
    count = len(network.classes)
    if name.isdigit() and (not count or int(name) < count):
        return int(name)
    near = difflib.get_close_matches(name, network.classes, n=3) or network.classes[:5]
    more = ', ...' if count > len(near) else ''
    raise ValueError(
        f'{network.name} has no class {name!r}. '
        + (f'It has {", ".join(near)}{more} ({count} in all).' if count else 'Give an index.')
    )


def choose_target(network: Network, view: View, question: Question) -> Target:
    """Return what to explain in a picture.

    By default: the predicted class of a classifier; of a segmentor the one
    predicted at the centre; of a detector the most certain detection.

    Raises:
        NoTargetError: A detector finds no such object in this picture.
        ValueError: A place outside the picture.
    """
    label = None if question.name is None else label_of(question.name, network)
    choose = {
        'classification': _choose_class,
        'segmentation': _choose_region,
        'detection': _choose_box,
    }[task_of(network.cfg)]
    with torch.no_grad():
        return choose(network.model, view, question, label)


def segmentation_logits(model: Any, inputs: Tensor) -> Tensor:
    """Return a segmentor's logits [B, K, H, W] in the size of its input [B, 3, H, W].

    A head with one output channel, whose sigmoid is the probability of class 1, gives two.
    """
    shape = tuple(inputs.shape[-2:])
    logits = model.encode_decode(inputs, [dict(img_shape=shape, pad_shape=shape)] * len(inputs))
    # Their softmax is the sigmoid of the one, and either class has a gradient.
    return torch.cat((-logits / 2, logits / 2), 1) if logits.shape[1] == 1 else logits


def _choose_class(model: Any, view: View, question: Question, label: int | None) -> Target:
    logits = model(view.inputs, mode='tensor')[0]
    families = {base.__name__ for base in type(model.head).__mro__}
    probabilities = logits.sigmoid() if 'MultiLabelClsHead' in families else logits.softmax(0)
    label = int(probabilities.argmax()) if label is None else label
    return Target(ClassScore(model, label), label, float(probabilities[label]))


def _choose_region(model: Any, view: View, question: Question, label: int | None) -> Target:
    height, width = view.picture.shape[:2]
    point = box = None
    region = torch.zeros(view.inputs.shape[-2:], dtype=torch.bool, device=view.inputs.device)
    if question.region is not None:
        box = tuple(view.to_input(question.region))
        # At least one pixel, within the picture.
        x1, y1 = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
        x2, y2 = max(round(box[2]), x1 + 1), max(round(box[3]), y1 + 1)
        region[y1:y2, x1:x2] = True
    else:
        asked = question.point
        point = (width / 2, height / 2) if asked is None else tuple(view.to_input(asked))
        region[min(int(point[1]), height - 1), min(int(point[0]), width - 1)] = True
    probabilities = segmentation_logits(model, view.inputs)[0][:, region]
    # The "logits" of heads like Mask2Former's are sums of their queries' probabilities.
    head = _stages(model.decode_head)[-1]
    if not hasattr(head, 'transformer_decoder'):
        probabilities = probabilities.softmax(0)
    if label is None:
        if head.out_channels == 1:
            labels = probabilities[1] > head.threshold
        else:
            labels = probabilities.argmax(0)
        label = int(labels.mode().values)
    confidence = float(probabilities[label].mean())
    return Target(RegionScore(model, label, region), label, confidence, box, point)


def _choose_box(model: Any, view: View, question: Question, label: int | None) -> Target:
    (result,) = model.predict(view.inputs, [deepcopy(view.sample)], rescale=False)
    if 'pred_instances' not in result:
        raise ValueError(
            'The model finds no single objects to explain. A panoptic one does with '
            'model.test_cfg.instance_on=True in its config.'
        )
    instances = result.pred_instances
    # Of an object without a pixel, as queries for nothing give, there is nothing to look for.
    low, high = instances.bboxes[:, :2], instances.bboxes[:, 2:]
    instances = instances[(high > low).all(1)]
    if label is not None:
        instances = instances[instances.labels == label]
    if not len(instances):
        raise NoTargetError('nothing detected' if label is None else 'no such object detected')
    order = instances.scores.argsort(descending=True)
    if question.box is not None:
        wanted = torch.tensor(view.to_input(question.box), device=instances.bboxes.device)
        overlaps = _overlaps(wanted, instances.bboxes)
        if overlaps.max() < MIN_IOU:
            raise NoTargetError('nothing detected there')
        index = int(overlaps.argmax())
    else:
        rank = question.rank or 1
        if rank > len(instances):
            raise NoTargetError(f'only {len(instances)} detections')
        index = int(order[rank - 1])
    box, label = instances.bboxes[index], int(instances.labels[index])
    score: Score
    if hasattr(model, 'roi_head') and hasattr(model.roi_head, 'bbox_roi_extractor'):
        score = BoxScore(model, label, box)
    else:
        score = FoundScore(model, label, box, view.sample)
    return Target(score, label, float(instances.scores[index]), tuple(box.tolist()))


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Return the intersection over union of a box [4] with others [N, 4]."""
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


def _stages(modules: Any) -> Sequence[Any]:
    """Return the stages of a cascade, or the one of another head."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
