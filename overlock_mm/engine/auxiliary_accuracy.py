"""A metric for the head that teaches the Overview-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import METRICS


@METRICS.register_module()
class AuxiliaryAccuracy(Accuracy):
    """mmpretrain's ``Accuracy``, of the auxiliary classifier of ``OverLoCKClsHead``.

    With test-time augmentation, which averages only the main classifier, it is that of the first
    view.
    """

    default_prefix = 'auxiliary'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Store what counts of a batch of predictions.

        Raises:
            KeyError: The model has no auxiliary classifier.
        """
        if any('auxiliary_score' not in sample for sample in data_samples):
            raise KeyError(
                'AuxiliaryAccuracy needs a model with an auxiliary classifier: set '
                'model.head.auxiliary=True, or remove the metric from the evaluator.'
            )
        super().process(
            data_batch,
            [dict(sample, pred_score=sample['auxiliary_score']) for sample in data_samples],
        )
