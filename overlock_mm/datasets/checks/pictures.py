"""Samples of a data set, drawn as they leave its pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

#: Sides of a drawn sample, in pixels: small images are enlarged, so that names can be read.
_SIDE = 480
_COLUMNS = 4
_CAPTION = 16


def draw_samples(dataset: Any, scope: str, indices: Sequence[int]) -> Image.Image:
    """Draw samples of a built data set side by side, with all that its annotations say.

    Boxes, masks and label maps have the names of their classes; a classifier's picture has the name
    beside it. What the pipeline cuts, flips or distorts is drawn so; only the normalisation, which
    the model's preprocessor does, is still to come.

    Args:
        dataset: Its samples are packed for a model of mmdet, mmseg or mmpretrain.
        scope: Which of these libraries.
        indices: Indices of the samples.

    Returns:
        An RGB picture.
    """
    draw = {'mmdet': _draw_detection, 'mmseg': _draw_segmentation}.get(scope, _draw_class)
    tiles = []
    for index in indices:
        packed = dataset[index]
        inputs, sample = packed['inputs'], packed['data_samples']
        if isinstance(inputs, (list, tuple)):  # views of test-time augmentation
            inputs, sample = inputs[0], sample[0]
        drawn = Image.fromarray(draw(_as_rgb(inputs), sample, dict(dataset.metainfo)))
        drawn.thumbnail((_SIDE, _SIDE))
        tiles.append((drawn, Path(sample.get('img_path') or str(index)).name))
    return _side_by_side(tiles)


def _as_rgb(inputs: Tensor) -> np.ndarray:
    """The image [C, H, W] of a packed sample as uint8 [H, W, 3].

    Channels are taken for blue, green and red, as the libraries load them; of an image with other
    than three channels, the first is drawn in grey.
    """
    image = inputs.float().numpy().transpose(1, 2, 0)
    image = image[..., ::-1] if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    lowest, highest = float(image.min()), float(image.max())
    if inputs.dtype.is_floating_point and (lowest < 0 or highest > 255 or highest <= 1):
        image = (image - lowest) / max(highest - lowest, 1e-12) * 255
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))


def _factor(image: np.ndarray) -> int:
    return max(1, _SIDE // max(image.shape[:2]))


def _draw_detection(image: np.ndarray, sample: Any, meta: dict) -> np.ndarray:
    from overlock_mm.visualization.det_visualizer import EnlargingDetVisualizer

    visualizer = EnlargingDetVisualizer(factor=_factor(image), line_width=2)
    visualizer.dataset_meta = meta
    visualizer.add_datasample('sample', image, sample, draw_pred=False)
    return visualizer.get_image()


def _draw_segmentation(image: np.ndarray, sample: Any, meta: dict) -> np.ndarray:
    from overlock_mm.visualization.seg_visualizer import EnlargingSegVisualizer

    visualizer = EnlargingSegVisualizer(factor=_factor(image), alpha=0.5)
    visualizer.dataset_meta = meta
    visualizer.add_datasample('sample', image, sample, draw_pred=False)
    return visualizer.get_image()


def _draw_class(image: np.ndarray, sample: Any, meta: dict) -> np.ndarray:
    from mmpretrain.visualization import UniversalVisualizer

    visualizer = UniversalVisualizer()
    factor = _factor(image)
    visualizer.visualize_cls(
        image, sample, classes=meta.get('classes'), draw_pred=False, rescale_factor=factor
    )
    return visualizer.get_image()


def _side_by_side(tiles: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    width = max(tile.width for tile, _ in tiles)
    height = max(tile.height for tile, _ in tiles) + _CAPTION
    sheet = Image.new('RGB', (columns * width, -(-len(tiles) // columns) * height), 'white')
    for number, (tile, name) in enumerate(tiles):
        x, y = number % columns * width, number // columns * height
        sheet.paste(tile, (x, y))
        ImageDraw.Draw(sheet).text((x + 2, y + tile.height + 2), name, fill='black')
    return sheet
