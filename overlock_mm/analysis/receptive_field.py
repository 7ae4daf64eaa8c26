"""The effective receptive field of a network's output, as RepLKNet defined it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.utils.images import read_image

#: Shares of the contribution for which a square is looked for.
SHARES = (0.2, 0.3, 0.5, 0.99)


@dataclass(frozen=True)
class ReceptiveField:
    """The contributions of a square image's pixels to the output's central position.

    Args:
        scores: float64 [S, S], from 0 to 1: log10(1 + contribution), divided by its maximum.
    """

    scores: np.ndarray

    @property
    def size(self) -> int:
        """S, the side of the image in pixels."""
        return self.scores.shape[0]

    def side(self, share: float) -> int:
        """Return the side in pixels of the smallest centred square with ``share`` of the scores.

        The square's centre is pixel S // 2, so its side is odd, unless it is the whole image.

        Args:
            share: A share from 0 to 1.

        Raises:
            ValueError: Another number.
        """
        if not 0 < share <= 1:
            raise ValueError(f'A share must be above 0 and at most 1, got {share}.')
        centre = self.size // 2
        # The ring that a pixel is on, and what each ring and those within it hold.
        distance = np.abs(np.arange(self.size) - centre)
        ring = np.maximum(distance[:, None], distance)
        held = np.cumsum(np.bincount(ring.ravel(), weights=self.scores.ravel()))
        # The sum of all is the last, so that rounding cannot ask for more than there is.
        radius = int(np.argmax(held >= share * held[-1]))
        return min(2 * radius + 1, self.size)

    def side_ratio(self, share: float) -> float:
        """:meth:`side` divided by the side of the image; its square is RepLKNet's area ratio."""
        return self.side(share) / self.size


def measure_receptive_field(
    network: nn.Module,
    output: nn.Module,
    images: Iterable[Tensor],
    on_image: Callable[[], None] = lambda: None,
) -> ReceptiveField:
    """Effective receptive field of the central position of an output (RepLKNet, section 3.2).

    For each image: the channels of the output at its central position [H // 2, W // 2] are
    rectified and added; the positive part of that sum's gradient to the image, added over the
    channels of the image, is the contribution of a pixel. It is averaged over the images in
    float64. The logarithm of one plus it makes far contributions visible, but it is no constant
    factor: networks compare best when both are trained.

    Args:
        network: Called with an image; a backbone, in evaluation mode.
        output: The module within it whose output [B, C, H, W] is looked at.
        images: Batches [B, 3, S, S] of one size, normalised as the network expects.
        on_image: Called after each.

    Raises:
        ValueError: There are no images, or their shape is not square or changes; the output has no
            spatial positions; a gradient is not finite, or all of them are zero.
    """
    total: np.ndarray | None = None
    count = 0
    for image in images:
        if image.dim() != 4 or image.shape[-1] != image.shape[-2]:
            raise ValueError(f'Images must be [B, 3, S, S], got {list(image.shape)}.')
        contribution = _contribution(network, output, image)
        if total is not None and total.shape != contribution.shape:
            raise ValueError(
                f'All images must have one size, got {total.shape[0]} and {image.shape[-1]}.'
            )
        if not np.isfinite(contribution).all():
            raise ValueError(
                f'The gradient of image {count + 1} has values that are not finite. Look at the '
                'weights: a run that diverged leaves NaN in them.'
            )
        total = contribution if total is None else total + contribution
        count += len(image)
        on_image()
    if total is None:
        raise ValueError('The receptive field is an average over images, and there are none.')
    if not total.any():
        raise ValueError(
            f'The gradients of all {count} images are zero: the central position of the output is '
            'nowhere positive, or does not depend on the image. Look at the weights, or choose '
            'another output.'
        )
    scores = np.log10(1 + total / count)
    return ReceptiveField(scores / scores.max())


def random_images(
    count: int, size: int, seed: int = 0, device: str | torch.device = 'cpu'
) -> Iterator[Tensor]:
    """Yield images [1, 3, size, size] of normal noise, as after normalisation."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(1, 3, size, size, generator=generator).to(device)


def square_images(paths: Sequence[Path], size: int, preprocessor: nn.Module) -> Iterator[Tensor]:
    """Yield images from files, resized to the size (their aspect is not kept) and normalised.

    Args:
        paths: Image files.
        size: S in pixels.
        preprocessor: The model's ``data_preprocessor``, which knows mean, std and channel order.

    Yields:
        [1, 3, S, S], on the device of the preprocessor.
    """
    for path in paths:
        image = torch.from_numpy(read_image(path))[None].permute(0, 3, 1, 2).float()
        image = F.interpolate(
            image, (size, size), mode='bicubic', align_corners=False, antialias=True
        )
        batch = dict(inputs=[image[0].clamp(0, 255)], data_samples=None)
        # Detectors pad to multiples of 32, at the right and below.
        yield preprocessor(batch)['inputs'][..., :size, :size]


def _contribution(network: nn.Module, output: nn.Module, image: Tensor) -> np.ndarray:
    """Return each pixel's contribution, [S, S] in float64, summed over the batch."""
    image = image.detach().requires_grad_()
    outputs: list[Tensor] = []
    hook = output.register_forward_hook(lambda module, inputs, result: outputs.append(result))
    try:
        with torch.enable_grad():
            network(image)
    finally:
        hook.remove()
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].dim() != 4:
        raise ValueError(
            'The output must be one map [B, C, H, W] per forward pass; '
            f'{type(output).__name__} gives something else.'
        )
    height, width = outputs[0].shape[-2:]
    central = F.relu(outputs[0][:, :, height // 2, width // 2]).sum()
    if not central.requires_grad:
        raise ValueError('The output does not depend on the image: no gradient leads there.')
    (gradient,) = torch.autograd.grad(central, image)
    return F.relu(gradient).double().sum((0, 1)).cpu().numpy()
