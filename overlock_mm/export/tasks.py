"""Which export is for which model."""

from __future__ import annotations

from typing import Any

from overlock_mm.export.one_stage import ExportableOneStage, why_not_one_stage
from overlock_mm.export.parts import (
    Exportable,
    ExportableBackbone,
    ExportableClassifier,
    ExportableFeatures,
    ExportableSegmentor,
)
from overlock_mm.export.two_stage import ExportableTwoStage, why_not_two_stage

_DETECTOR_HEADS = ('roi_head', 'rpn_head', 'bbox_head', 'mask_head', 'panoptic_head')


def exportable(model: Any, features_only: bool = False) -> Exportable:
    """A model as a module that can be exported, by its kind.

    Args:
        model: A detector of mmdet, a segmentor of mmseg, a classifier of mmpretrain, or our
            backbone.
        features_only: Export only backbone and neck of a detector.

    Raises:
        TypeError: The model is none of these, or it predicts in a way that has no graph of
            standard operators.
    """
    if any(hasattr(model, head) for head in _DETECTOR_HEADS):
        return ExportableFeatures(model) if features_only else _detector(model)
    if features_only:
        raise TypeError(f'Only detectors have a neck to end at, got {type(model).__name__}.')
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


def _detector(model: Any) -> Exportable:
    name = type(model).__name__
    two_stages = hasattr(model, 'roi_head') and hasattr(model, 'rpn_head')
    if two_stages:
        reasons = why_not_two_stage(model)
    elif hasattr(model, 'bbox_head'):
        reasons = why_not_one_stage(model)
    else:
        reasons = ['it is neither a two-stage detector nor one with a dense head']
    if reasons:
        raise TypeError(
            f'This {name} cannot be exported whole: {"; ".join(reasons)}. Backbone and neck can: '
            '--features-only, or features_only=True in Python.'
        )
    return ExportableTwoStage(model) if two_stages else ExportableOneStage(model)
