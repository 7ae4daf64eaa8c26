"""A config and its weights as a model: from pictures to results, through the host library."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope

from overlock_mm.analysis.networks import dataset_meta
from overlock_mm.analysis.views import task_of
from overlock_mm.checkpoint import check_compatible, read_checkpoint
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.loading import load_with_name
from overlock_mm.datasets.checks.queries import check_kept_results
from overlock_mm.runtime.description import ModelDescription
from overlock_mm.runtime.drawing import colors_of
from overlock_mm.runtime.pictures import as_array
from overlock_mm.runtime.results import Classification, Detections, Result, Segmentation
from overlock_mm.utils.config import innermost_dataset, load_config


class ConfigModel:
    """See the module; pictures go through the test pipeline of the config.

    Args:
        config: Config of a detector, segmentor or classifier: a file, or its content.
        checkpoint: A checkpoint of exactly this model.
        device: Where it runs.

    Raises:
        FileNotFoundError: There is no such config or checkpoint.
        ValueError: The config is of none of the three tasks, has no test pipeline, or keeps more
            results than its queries give; or there is no such device.
        CheckpointError: The checkpoint cannot be read.
        CheckpointMismatchError: It belongs to another model.
    """

    def __init__(self, config: str | Path | Config, checkpoint: str | Path, device: str) -> None:
        _check_device(device)
        cfg = config if isinstance(config, Config) else load_config(config)
        self.task = task_of(cfg)
        check_kept_results(cfg.model)
        if not cfg.get('test_dataloader'):
            raise ValueError('The config has no test_dataloader, whose pipeline loads pictures.')
        content = read_checkpoint(checkpoint)
        # The scope of an earlier model may still be set.
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        check_compatible(model, content['state_dict'], str(checkpoint))
        model.load_state_dict(content['state_dict'], strict=False)
        self.model = revert_sync_batchnorm(model).to(device).eval()
        self.description = self._description(cfg, content.get('meta') or {})
        first, *rest = innermost_dataset(cfg.test_dataloader.dataset).pipeline
        self._loader = TRANSFORMS.build(first)
        rest = [step for step in rest if 'LoadAnnotations' not in str(step['type'])]
        self._pipeline = Compose(rest)

    def _description(self, cfg: Config, meta: dict[str, Any]) -> ModelDescription:
        dataset = dataset_meta(cfg, meta)
        classes = tuple(dataset.get('classes', ()))
        palette = tuple(tuple(color) for color in dataset.get('palette', ()))
        if len(palette) < len(classes):
            palette = colors_of(len(classes))
        return ModelDescription(
            self.task,
            classes,
            palette,
            channels=cfg.model.backbone.get('in_channels', 3),
            mean=tuple((cfg.model.get('data_preprocessor') or {}).get('mean') or ()),
        )

    def load(self, source: Any) -> np.ndarray:
        """Return a picture as [H, W, C]; files are read as the config reads them.

        Raises:
            DataError: It cannot be loaded.
        """
        if not isinstance(source, (str, PathLike)):
            return as_array(source, self.description)
        image = load_with_name(self._loader, {'img_path': str(source)})['img']
        return _other_order(image if image.ndim == 3 else image[..., None])

    def predict(self, images: Sequence[np.ndarray], sources: Sequence[str | None]) -> list[Result]:
        """Return results of pictures, which run together where their inputs have one size."""
        data = [self._prepared(*pair) for pair in zip(images, sources, strict=True)]
        results: dict[int, Result] = {}
        rows_of_size: dict[Any, list[int]] = {}
        for row, one in enumerate(data):
            rows_of_size.setdefault(one['inputs'].shape, []).append(row)
        for rows in rows_of_size.values():
            batch = {key: [data[row][key] for row in rows] for key in data[rows[0]]}
            with torch.no_grad():
                samples = self.model.test_step(batch)
            for row, sample in zip(rows, samples, strict=True):
                results[row] = self._result(sample, images[row], sources[row])
        return [results[row] for row in range(len(images))]

    def _prepared(self, image: np.ndarray, source: str | None) -> Any:
        shape = image.shape[:2]
        entry = dict(img=_other_order(image), img_shape=shape, ori_shape=shape)
        try:
            return self._pipeline({**entry, 'img_id': 0, 'img_path': source or ''})
        except cv2.error as error:
            raise DataError(
                f'{source or "The picture"} is {shape[1]} x {shape[0]} pixels, and the test '
                f'pipeline of the config cannot resize it ({error.err}). Cut it, or pad its short '
                'side.'
            ) from error

    def _result(self, sample: Any, image: np.ndarray, source: str | None) -> Result:
        classes, palette = self.description.classes, self.description.palette
        common: dict[str, Any] = dict(image=image, classes=classes, palette=palette, source=source)
        if self.task == 'classification':
            labels = np.atleast_1d(_array(sample.pred_label))
            return Classification(**common, scores=_array(sample.pred_score), labels=labels)
        if self.task == 'segmentation':
            label_map = _array(sample.pred_sem_seg.data[0]).astype(np.int64)
            return Segmentation(**common, label_map=label_map)
        if 'pred_instances' not in sample:
            raise DataError(
                'The model finds no single objects. A panoptic one does with '
                'model.test_cfg.instance_on=True in its config.'
            )
        instances = sample.pred_instances
        # Detectors with queries have no order.
        instances = instances[instances.scores.argsort(descending=True, stable=True)]
        masks = _array(instances.masks).astype(bool) if 'masks' in instances else None
        boxes, scores, labels = map(_array, (instances.bboxes, instances.scores, instances.labels))
        return Detections(**common, boxes=boxes, scores=scores, labels=labels, masks=masks)


def loads_common_images(cfg: Config) -> bool:
    """Return whether the test pipeline of a config loads pictures of three channels."""
    loader = cfg.get('test_dataloader')
    if not loader:
        return True
    first = innermost_dataset(loader.dataset).pipeline[0]
    kind = str(getattr(first['type'], '__name__', first['type'])).rpartition('.')[2]
    colour = str(first.get('color_type') or 'color').startswith('color')
    return kind == 'LoadImageFromFile' and colour and first.get('imdecode_backend') != 'tifffile'


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    # Without CUDA compiled in it is an AssertionError.
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        known = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        reason, *_ = str(error).split('\n')
        raise ValueError(
            f'PyTorch cannot compute on device={device!r} here ({reason}). '
            f'It has {", ".join(map(repr, known))}.'
        ) from error


def _other_order(image: np.ndarray) -> np.ndarray:
    """Convert between RGB and OpenCV's BGR."""
    return np.ascontiguousarray(image[..., ::-1]) if image.shape[2] == 3 else image


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
