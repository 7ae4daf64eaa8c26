"""Augmentations that act on whole batches of the classifier.

Only the classification configs name it: the backbone does not need mmpretrain.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmpretrain.models import RandomBatchAugment
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

_ATTEMPTS = 10  # to draw a rectangle that fits, as in timm


@BATCH_AUGMENTS.register_module()
class MixThenErase:
    """Mix the images of a batch, then fill a rectangle of some of them with noise.

    The order, the draw of the rectangles and the noise are those of timm 0.6.12, whose loader
    erases from normalised images after it has mixed them: no image of a mixture shows through the
    noise, and it is not cut off at black and white. mmpretrain's transform ``RandomErasing`` erases
    from single images before they are mixed.

    Args:
        augments: Batch augmentations of mmpretrain, such as ``Mixup``; one is drawn for each batch.
        probs: Probability of each, as in mmpretrain's ``RandomBatchAugment``; None draws evenly.
        erase_prob: Probability with which an image is erased from.
        area_ratio: Smallest and largest part of an image's area, drawn evenly between them.
        min_aspect: Smallest height over width; the largest is its inverse, and the logarithm is
            drawn evenly between theirs.

    Raises:
        ValueError: A probability, an area or an aspect is out of its range.

    Example:
        >>> augment = MixThenErase([dict(type='Mixup', alpha=0.8)], erase_prob=0.25)
        >>> images, scores = augment(torch.rand(8, 3, 224, 224), torch.eye(8))
    """

    def __init__(
        self,
        augments: Sequence[Mapping[str, Any]],
        probs: Sequence[float] | None = None,
        erase_prob: float = 0.25,
        area_ratio: tuple[float, float] = (0.02, 1 / 3),
        min_aspect: float = 0.3,
    ) -> None:
        smallest, largest = area_ratio
        if not 0.0 <= erase_prob <= 1.0:
            raise ValueError(f'erase_prob must be in [0, 1], got {erase_prob}.')
        if not 0.0 < smallest <= largest < 1.0:
            raise ValueError(f'area_ratio must rise between 0 and 1, got {area_ratio}.')
        if not 0.0 < min_aspect <= 1.0:
            raise ValueError(f'min_aspect must be in (0, 1], got {min_aspect}.')
        self.mix = RandomBatchAugment(list(augments), None if probs is None else list(probs))
        self.erase_prob = erase_prob
        self.area_ratio = area_ratio
        self.log_aspect = -math.log(min_aspect)

    def __call__(self, images: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: Normalised, [B, C, H, W].
            scores: One-hot labels [B, num_classes].

        Returns:
            The images and the mixed labels, of the same shapes.
        """
        images, scores = self.mix(images, scores)
        for image in images:
            if np.random.rand() < self.erase_prob:
                self._erase(image)
        return images, scores

    def _erase(self, image: Tensor) -> None:
        """Fill a rectangle of an image [C, H, W] in place with independent values from N(0, 1)."""
        height, width = image.shape[-2:]
        for _ in range(_ATTEMPTS):
            area = np.random.uniform(*self.area_ratio) * height * width
            aspect = math.exp(np.random.uniform(-self.log_aspect, self.log_aspect))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top = np.random.randint(height - rows + 1)
                left = np.random.randint(width - columns + 1)
                image[:, top : top + rows, left : left + columns].normal_()
                return
