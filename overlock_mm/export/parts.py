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
        input_names: One per input, the first for images.
        output_names: One per output.
        head: What the outputs mean, for :class:`overlock_mm.runtime.ModelDescription`.
        note: What is left to the caller, or nothing.
        size_divisor: Divisor of the sides of images.
        fixed_size: Whether the graph serves one size of images only, so that what follows from the
            size may be a constant.
        fixed_rows: Whether all rows of the outputs are computed, empty ones too, so that no shape
            in the graph follows from values.
    """

    task: str
    input_names: tuple[str, ...] = ('image',)
    output_names: tuple[str, ...]
    note = ''
    size_divisor = 1
    fixed_size = False
    fixed_rows = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.head: dict[str, Any] = {}

    def inputs_of(self, image: Tensor) -> tuple[Tensor, ...]:
        """All inputs for images [B, C, H, W] without padding."""
        return (image,)

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """The largest difference of outputs, of the largest value of each."""
        return max(map(_relative_difference, actual, expected))


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

    task = 'classification'
    output_names = ('scores',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # Compared by name, so that other models can be exported without mmpretrain.
        families = {base.__name__ for base in type(self.model.head).__mro__}
        self._multi_label = 'MultiLabelClsHead' in families
        self.head = {'scores': 'softmax'}
        if self._multi_label:
            threshold = self.model.head.thr
            self.head = {'scores': 'sigmoid', 'threshold': 0.5 if threshold is None else threshold}

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] to probabilities [B, classes]: of one class or, by sigmoid, of each."""
        logits = self.model(image, mode='tensor')
        return logits.sigmoid() if self._multi_label else logits.softmax(-1)


class ExportableSegmentor(Exportable):
    """Probabilities and labels of mmseg's ``EncoderDecoder`` at the size of the image."""

    task = 'segmentation'
    output_names = ('scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        heads = self.model.decode_head
        # Of a cascade, such as OCRNet's, the last one answers.
        decode_head: Any = heads[-1] if isinstance(heads, nn.ModuleList) else heads
        self._one_channel = decode_head.out_channels == 1
        self.head = {'scores': 'softmax'}
        if self._one_channel:
            self.head = {'scores': 'sigmoid', 'threshold': decode_head.threshold}
        self._align_corners = decode_head.align_corners
        if self._align_corners:
            self.head['align_corners'] = True
        if self.model.test_cfg.get('mode', 'whole') != 'whole':
            self.note = 'The file takes whole images, where the test of the config slides a window.'

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] to probabilities [B, classes, H, W] and labels [B, H, W].

        Of a head with one channel the probability is that of class 1, [B, 1, H, W].
        """
        logits = F.interpolate(
            self.model(image, mode='tensor'),
            image.shape[-2:],
            mode='bilinear',
            align_corners=self._align_corners,
        )
        if self._one_channel:
            scores = logits.sigmoid()
            return scores, (scores[:, 0] > self.head['threshold']).long()
        return logits.softmax(1), logits.argmax(1)


class ExportableFeatures(Exportable):
    """Backbone and neck of a detector of mmdet."""

    task = 'features'
    note = 'Backbone and neck are exported, without the heads.'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.output_names = tuple(f'feature{i}' for i, _ in enumerate(maps_of(model, 64) or ()))
        self.size_divisor = size_divisor(model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] to one map per level of the pyramid."""
        return tuple(self.model.extract_feat(image))


class Normalised(Exportable):
    """Takes raw images, 0 to 255, and normalises them as in training."""

    mean: Tensor
    std: Tensor

    def __init__(self, part: Exportable, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(part)
        self.task, self.input_names, self.output_names = (
            part.task,
            part.input_names,
            part.output_names,
        )
        self.head, self.note, self.size_divisor = part.head, part.note, part.size_divisor
        self.register_buffer('mean', torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor, *further: Tensor) -> Any:
        """[B, C, H, W] in 0 to 255, and the part's further inputs, to what the part returns."""
        self.model.fixed_size, self.model.fixed_rows = self.fixed_size, self.fixed_rows
        return self.model((image - self.mean) / self.std, *further)

    def inputs_of(self, image: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Exportable`; images of a mean of 0 and a deviation of 1 become raw ones."""
        return self.model.inputs_of(image * self.std + self.mean)

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """See :class:`Exportable`."""
        return self.model.difference(actual, expected)


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float('inf')
    if not expected.is_floating_point():
        # Labels of pixels; between two that are nearly equal, rounding decides.
        different = (actual != expected).float().mean().item()
        return 0.0 if different < 1e-3 else different
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def maps_of(model: Any, side: int) -> Sequence[Tensor] | None:
    """What a detector's neck makes of a square image; None if it does not take such a size."""
    image = next(model.parameters()).new_zeros((1, image_channels(model), side, side))
    training = model.training
    try:
        with torch.no_grad():
            return model.eval().extract_feat(image)
    # Maps whose sizes do not fit one another.
    except RuntimeError:
        return None
    finally:
        model.train(training)


def size_divisor(model: Any) -> int:
    """1 if a detector's neck takes images of any size, else 32."""
    return 32 if maps_of(model, MIN_IMAGE_SIZE + 1) is None else 1
