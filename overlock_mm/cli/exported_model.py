"""An exported file as the model of a config, whose metrics thus measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from overlock_mm.analysis.views import task_of
from overlock_mm.datasets.checks.agreement import evaluators_of, name_of
from overlock_mm.predict import Predictor
from overlock_mm.runtime import Classification, Detections, Segmentation
from overlock_mm.runtime.description import ModelDescription


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Predicts the pictures of data samples with an exported file.

    The file prepares pictures as its metadata say, so what the test pipeline has made of them is
    not read: what is measured is what a user of the file gets.

    Args:
        file: An ``.onnx`` or ``.xml`` file.
        **options: Options of :class:`~overlock_mm.Predictor`.

    Raises:
        OSError, ImportError, ValueError: See :class:`~overlock_mm.Predictor`.
    """

    def __init__(self, file: str | Path, **options: Any) -> None:
        super().__init__()
        self.predictor = Predictor(file, **options)

    @property
    def description(self) -> ModelDescription:
        """What the file says about itself."""
        return self.predictor.model.description

    def test_step(self, data: Any) -> list[Any]:
        """Return the data samples of a batch with the results in them, as the library fills them.

        Raises:
            ValueError: A picture cannot be read, or does not fit the file.
        """
        samples = list(data['data_samples'])
        results = self.predictor([sample.img_path for sample in samples])
        for sample, result in zip(samples, results, strict=True):
            _fill(sample, result)
        return samples

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing but :meth:`test_step` is meant for use."""
        raise TypeError('An exported file is tested, not trained.')


def fitting_metrics(
    description: ModelDescription, cfg: Config, path: str
) -> tuple[list[Any], list[str]]:
    """Compare a file's task and outputs with what a config measures.

    Args:
        description: What the file says about itself.
        cfg: A full config.
        path: The file, for messages.

    Returns:
        The settings of the test metrics that can be measured, and a sentence for each left out.

    Raises:
        ValueError: The file does not fit the config.
    """
    task = task_of(cfg)
    if description.task != task:
        raise ValueError(f'{path} is for {description.task}, and the config is for {task}.')
    metrics, left_out = [], []
    for metric in evaluators_of(cfg.test_evaluator):
        kinds = metric.get('metric', ())
        if task == 'detection' and 'segm' in kinds and 'masks' not in description.head:
            raise ValueError(
                f"{path} finds no masks, which the config's metric 'segm' measures. Set "
                '--cfg-options test_evaluator.metric=bbox.'
            )
        if name_of(metric) == 'AuxiliaryAccuracy':
            left_out.append('AuxiliaryAccuracy is left out: files hold no auxiliary classifier.')
        else:
            metrics.append(metric)
    return metrics, left_out


def _fill(sample: Any, result: Any) -> None:
    if isinstance(result, Detections):
        found = InstanceData(
            bboxes=_tensor(result.boxes),
            scores=_tensor(result.scores),
            labels=_tensor(result.labels),
        )
        if result.masks is not None:
            found.masks = _tensor(result.masks)
        sample.pred_instances = found
    elif isinstance(result, Segmentation):
        sample.pred_sem_seg = PixelData(data=_tensor(result.label_map)[None])
    elif isinstance(result, Classification):
        sample.set_pred_score(_tensor(result.scores)).set_pred_label(_tensor(result.labels))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
