"""Whether detectors with queries find as many objects as they are to keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .errors import DataError


class _Kept(NamedTuple):
    """What ``topk`` will ask of the results of one image."""

    limit: int
    limit_setting: str
    queries: int
    queries_setting: str
    #: Results of one query: one for each class, or a single one where classes exclude each other.
    per_query: int


def check_kept_results(model: Any) -> None:
    """Demand that queries give as many results as the model keeps of an image.

    mmdet takes the best ones by ``topk``, which fails where there are fewer, at the first
    validation.

    Args:
        model: Settings of a model; those that have no queries pass.

    Raises:
        DataError: Names both settings and the largest number.
    """
    model = model.get('module', model)  # below test-time augmentation
    for kept in _kept_results(model):
        results = kept.queries * kept.per_query
        if kept.limit > results:
            classes = f' and {kept.per_query} classes' if kept.per_query > 1 else ''
            raise DataError(
                f'{kept.limit_setting} keeps {kept.limit} results of an image, but '
                f'{kept.queries} queries ({kept.queries_setting}){classes} give {results}. Set '
                f'--cfg-options {kept.limit_setting}={results}, or more queries.'
            )


def _kept_results(model: Any) -> Iterator[_Kept]:
    test_cfg = model.get('test_cfg') or {}
    if 'panoptic_fusion_head' in model and test_cfg.get('instance_on'):
        fusion = model['panoptic_fusion_head']
        yield _Kept(
            test_cfg.get('max_per_image', 100),
            'model.test_cfg.max_per_image',
            model['panoptic_head'].get('num_queries', 100),
            'model.panoptic_head.num_queries',
            fusion.get('num_things_classes', 80) + fusion.get('num_stuff_classes', 53),
        )
    # Words, of which there are always enough, are the classes of a detector with a language model.
    elif 'num_queries' in model and 'bbox_head' in model and 'language_model' not in model:
        limit = test_cfg.get('max_per_img')
        if limit is not None:
            yield _Kept(
                limit,
                'model.test_cfg.max_per_img',
                model['num_queries'],
                'model.num_queries',
                model['bbox_head']['num_classes'] if _by_sigmoid(model['bbox_head']) else 1,
            )
    elif 'num_proposals' in (model.get('rpn_head') or {}):  # Sparse R-CNN, QueryInst
        limit = (test_cfg.get('rcnn') or {}).get('max_per_img')
        heads = model['roi_head']['bbox_head']
        last = heads[-1] if isinstance(heads, (list, tuple)) else heads
        if limit is not None:
            yield _Kept(
                limit,
                'model.test_cfg.rcnn.max_per_img',
                model['rpn_head']['num_proposals'],
                'model.rpn_head.num_proposals',
                last.get('num_classes', 80),
            )


def _by_sigmoid(head: Any) -> bool:
    """Whether a head of DETR's family scores each class by itself."""
    loss = head.get('loss_cls') or {}
    # The default of the losses' own settings.
    return bool(loss.get('use_sigmoid', 'Focal' in str(loss.get('type'))))
