"""Pictures from files at a chosen size, and as inputs of a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from overlock_mm.models.overlock import MIN_IMAGE_SIZE
from overlock_mm.utils.images import read_image


@dataclass(frozen=True)
class Picture:
    """A picture from a file, resized.

    Args:
        pixels: uint8 RGB [H, W, 3].
        file_size: Height and width of the picture in the file.
    """

    pixels: np.ndarray
    file_size: tuple[int, int]

    def resized(self, position: tuple[float, float]) -> tuple[float, float]:
        """Return a place in pixels of the file, x and y, as one in ``pixels``."""
        x, y = position
        height, width = self.pixels.shape[:2]
        return x * width / self.file_size[1], y * height / self.file_size[0]


def read_picture(
    path: str | Path, shape: tuple[int, int] | None = None, longest_side: int = 512
) -> Picture:
    """Read an image file and resize it.

    Args:
        path: An image file, which :func:`overlock_mm.utils.images.read_image` reads.
        shape: Height and width to resize to; None keeps the aspect.
        longest_side: Without a shape, larger images are made this large.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or a side would be too small for the network.
    """
    image = Image.fromarray(read_image(path)[..., ::-1])
    if shape is None:
        factor = min(1.0, longest_side / max(image.size))
        shape = (round(image.height * factor), round(image.width * factor))
    height, width = shape
    if min(shape) < MIN_IMAGE_SIZE:
        raise ValueError(
            f'The image must have sides of at least {MIN_IMAGE_SIZE} pixels, got {width} x '
            f'{height} (width x height). Give a larger size with --shape H W.'
        )
    file_size = image.height, image.width
    if shape != file_size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return Picture(np.asarray(image), file_size)


def as_input(model: nn.Module, picture: np.ndarray) -> Tensor:
    """Return a picture as the backbone of a model takes it: normalised by the model's preprocessor.

    Args:
        model: A model with the ``data_preprocessor`` of an OpenMMLab library.
        picture: uint8 RGB [H, W, 3].

    Returns:
        [1, 3, H, W], without padding.
    """
    height, width = picture.shape[:2]
    # The libraries read images as BGR, and their preprocessors convert them.
    inputs = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)
    batch = model.data_preprocessor(dict(inputs=[inputs]), False)  # type: ignore[operator]
    return batch['inputs'][..., :height, :width]
