"""What of a model becomes a graph: modules from an image to tensors, without data samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.models.overlock import MIN_IMAGE_SIZE, image_channels


class Exportable(nn.Module):
    """A part of a model that maps images to tensors.

    Attributes:
        task: What it is, in a word.
        output_names: One per output.
        note: What is left to the caller, or nothing.
    """

    task: str
    output_names: tuple[str, ...]
    note = ''

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model


class ExportableBackbone(Exportable):
    """The feature maps of the backbone."""

    task = 'backbone'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.output_names = tuple(f'output{i}' for i in self.model.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] to one map per output of the backbone."""
        return self.model(image)


class ExportableClassifier(Exportable):
    """Scores of mmpretrain's ``ImageClassifier``."""

    task = 'classifier'
    output_names = ('scores',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # By name: mmpretrain, of which the class is, is not needed to export other models.
        families = {base.__name__ for base in type(self.model.head).__mro__}
        self._multi_label = 'MultiLabelClsHead' in families

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] to probabilities [B, classes]: of one class or, by sigmoid, of each."""
        logits = self.model(image, mode='tensor')
        return logits.sigmoid() if self._multi_label else logits.softmax(-1)


class ExportableSegmentor(Exportable):
    """Logits of mmseg's ``EncoderDecoder`` at the size of the image."""

    task = 'segmentor'
    output_names = ('logits',)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, classes, H, W]; the class is their argmax."""
        logits = self.model(image, mode='tensor')
        return F.interpolate(
            logits,
            image.shape[-2:],
            mode='bilinear',
            align_corners=self.model.decode_head.align_corners,
        )


class ExportableFeatures(Exportable):
    """Backbone and neck of a detector of mmdet."""

    task = 'detector features'
    note = (
        'Backbone and neck are exported. The heads are not: between and after them boxes are '
        'chosen by their content (top-k, non-maximum suppression, RoIAlign on each level), and '
        "mmcv's operators for it have no standard ONNX form with the same results."
    )

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__(model)
        self.output_names = tuple(f'feature{i}' for i in range(levels))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] to one map per level of the pyramid."""
        return tuple(self.model.extract_feat(image))


class Normalised(Exportable):
    """Takes raw images, 0 to 255, and normalises them as in training."""

    mean: Tensor
    std: Tensor

    def __init__(self, part: Exportable, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(part)
        self.task, self.output_names, self.note = part.task, part.output_names, part.note
        self.register_buffer('mean', torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Any:
        """[B, C, H, W] in 0 to 255 to what the wrapped part returns."""
        return self.model((image - self.mean) / self.std)


_DETECTOR_HEADS = ('roi_head', 'rpn_head', 'bbox_head', 'mask_head', 'panoptic_head')


def _levels(model: Any) -> int:
    """How many maps a detector's features have: what a neck calls that number differs."""
    weight = next(model.parameters())
    size = (1, image_channels(model), MIN_IMAGE_SIZE, MIN_IMAGE_SIZE)
    training = model.training
    with torch.no_grad():
        maps = model.eval().extract_feat(weight.new_zeros(size))
    model.train(training)
    return len(maps)


def exportable(model: Any) -> Exportable:
    """The part of a model that can be exported, by its kind.

    Args:
        model: A detector of mmdet, a segmentor of mmseg, a classifier of mmpretrain, or our
            backbone.

    Raises:
        TypeError: The model is none of these.
    """
    if any(hasattr(model, head) for head in _DETECTOR_HEADS):
        return ExportableFeatures(model, _levels(model))
    if hasattr(model, 'decode_head'):
        if hasattr(model.decode_head, 'transformer_decoder'):  # Mask2Former
            raise TypeError(
                f'{type(model.decode_head).__name__} is called with more than the maps of the '
                'backbone and cannot be exported. Segmentors whose heads are convolutions, such as '
                'UPerNet, can.'
            )
        return ExportableSegmentor(model)
    if hasattr(model, 'backbone') and hasattr(model, 'head'):
        return ExportableClassifier(model)
    if hasattr(model, 'out_indices') and hasattr(model, 'switch_to_deploy'):
        return ExportableBackbone(model)
    raise TypeError(
        'Only detectors of mmdet, segmentors of mmseg, classifiers of mmpretrain and the backbone '
        f'OverLoCK can be exported, got {type(model).__name__}.'
    )
