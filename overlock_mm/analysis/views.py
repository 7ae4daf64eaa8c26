"""A picture as a network sees it: after the test pipeline of its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from torch import Tensor

from overlock_mm.analysis.networks import Network
from overlock_mm.utils.config import innermost_dataset

#: Task of each library's configs.
TASKS = {
    'mmdet': 'detection',
    'mmseg': 'segmentation',
    'mmpretrain': 'classification',
}


@dataclass(frozen=True)
class View:
    """One picture, as file and as input.

    Args:
        path: Path of the file.
        inputs: [1, 3, H, W], normalised, maybe padded at the right and below.
        picture: What of it is no padding, uint8 RGB [h, w, 3].
        sample: The data sample of the model's library, with the meta information.
        scale: Width and height of ``picture`` over those of the file; None if it was cropped, too.
    """

    path: Path
    inputs: Tensor
    picture: np.ndarray
    sample: Any
    scale: tuple[float, float] | None

    def to_input(self, coordinates: Sequence[float]) -> list[float]:
        """Return the pixels x, y, x, y, ... of the file as those of the input.

        Raises:
            ValueError: They lie outside the file's picture, or it was cropped.
        """
        if self.scale is None:
            raise ValueError(f'{self.path} is cropped by the test pipeline; places in it are not.')
        height, width = self.sample.ori_shape[:2]
        limits = [(width, height)[i % 2] for i in range(len(coordinates))]
        if any(not 0 <= value <= limit for value, limit in zip(coordinates, limits, strict=True)):
            raise ValueError(
                f'{list(coordinates)} is not within {self.path}, which has {width} x {height} '
                'pixels.'
            )
        return [value * self.scale[i % 2] for i, value in enumerate(coordinates)]


def task_of(cfg: Any) -> str:
    """Return what a config's model does: detection, segmentation or classification.

    Raises:
        ValueError: Neither; its ``default_scope`` is of another library.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise ValueError(
            f'{cfg.filename} has default_scope={scope!r}; known are '
            + ', '.join(f'{name!r} ({task})' for name, task in TASKS.items())
            + '.'
        )
    return TASKS[scope]


def picture_pipeline(network: Network) -> Compose:
    """Return the test pipeline of a network's config, without what loads annotations.

    Raises:
        ValueError: The config has none.
    """
    loader = network.cfg.get('test_dataloader')
    if not loader:
        raise ValueError(
            f'{network.cfg.filename} has no test_dataloader, whose pipeline prepares pictures.'
        )
    steps = [
        step
        for step in innermost_dataset(loader.dataset).pipeline
        if 'Annotations' not in str(step['type'])
    ]
    with DefaultScope.overwrite_default_scope(network.cfg.default_scope):
        return Compose(steps)


def read_view(network: Network, pipeline: Compose, path: Path) -> View:
    """Prepare one picture for a network.

    Args:
        network: Whose preprocessor is used, on its device.
        pipeline: The result of :func:`picture_pipeline`.
        path: An image file.
    """
    data = pipeline(dict(img_path=str(path), img_id=0))
    sample = data['data_samples']
    height, width = sample.img_shape[:2]
    # Pipelines return BGR; the preprocessor converts it where the network expects RGB.
    picture = data['inputs'][:, :height, :width].flip(0).permute(1, 2, 0)
    batch = network.model.data_preprocessor(  # type: ignore[operator]
        dict(inputs=[data['inputs']], data_samples=[sample]), False
    )
    cropped = task_of(network.cfg) == 'classification'
    x_scale, y_scale = sample.metainfo.get('scale_factor', (1, 1))
    return View(
        path=path,
        inputs=batch['inputs'],
        picture=picture.clamp(0, 255).byte().cpu().numpy(),
        sample=batch['data_samples'][0],
        scale=None if cropped else (float(x_scale), float(y_scale)),
    )
