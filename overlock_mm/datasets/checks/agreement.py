"""Whether the data sets of a run agree with one another, with the model and with the metrics."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from .coco_file import CocoFile
from .errors import DataError


def check_same_classes(classes: dict[str, list[str]]) -> list[str]:
    """Compare the names of the classes of train, val and test.

    Returns:
        What is odd, but may be meant.

    Raises:
        DataError: A name has another label than in the first data set.
    """
    odd = []
    (first, names), *others = classes.items() if classes else [('', [])]
    for split, other in others:
        if other == names:
            continue
        text = (
            f'The classes of {split} are not those of {first}: {tuple(other[:10])} and '
            f'{tuple(names[:10])}'
        )
        labels = {name: label for label, name in enumerate(names)}
        if any(labels.get(name, label) != label for label, name in enumerate(other)):
            raise DataError(
                f'{text}, so that labels mean different things. Give both the same names in the '
                'same order (folders and categories included); a class without an image still '
                'needs its empty folder.'
            )
        odd.append(f'{text}.')
    return odd


_HEADS = (
    'bbox_head',
    'mask_head',
    'panoptic_head',
    'panoptic_fusion_head',
    'decode_head',
    'auxiliary_head',
    'head',
)


def heads_of(model: Any) -> Iterator[tuple[str, Any]]:
    """The heads that tell the data set's classes apart, by the setting that holds them."""
    model = model.get('module', model)  # below test-time augmentation
    for prefix, owner in (('model', model), ('model.roi_head', model.get('roi_head') or {})):
        for name in _HEADS:
            heads = owner.get(name) if isinstance(owner, dict) else None
            several = isinstance(heads, (list, tuple))
            listed: list[Any] = list(heads or ()) if several else [heads]
            for index, head in enumerate(listed):
                if isinstance(head, dict):
                    yield f'{prefix}.{name}' + (f'.{index}' if several else ''), head


def check_outputs(model: Any, num_classes: int, none_over: bool) -> None:
    """Demand that heads have as many outputs as the data set has classes.

    Args:
        model: Settings of the model.
        num_classes: Number of classes of the data set.
        none_over: Whether more outputs than classes are wrong: mmdet's metrics name every output.

    Raises:
        DataError: Names the setting.
    """
    if 'language_model' in model:  # its outputs are words
        return
    wrong = {
        setting: own
        for setting, own in _outputs_of(model)
        # One output may stand for two classes; one box class for any object.
        if own not in (1, num_classes) and (own < num_classes or none_over)
    }
    if wrong:
        text = ', '.join(f'{setting} is {own}' for setting, own in wrong.items())
        options = ' '.join(f'{setting}={num_classes}' for setting in wrong)
        raise DataError(
            f'{text}, but the data set has {num_classes} classes. Set --cfg-options {options}, or '
            'give the data set its classes (dataset.metainfo.classes).'
        )


def _outputs_of(model: Any) -> Iterator[tuple[str, int]]:
    """Numbers of classes by the setting that holds them."""
    for setting, head in heads_of(model):
        own = head.get('num_classes')
        if isinstance(own, int):
            yield f'{setting}.num_classes', own
        # Heads of panoptic segmentation; for instances they have no stuff.
        elif isinstance(head.get('num_things_classes'), int):
            stuff = head.get('num_stuff_classes') or 0
            yield f'{setting}.num_things_classes', head['num_things_classes'] + stuff


def check_class_weights(model: Any) -> None:
    """Demand that a loss has a weight for each class of its head, and perhaps one for none.

    Raises:
        DataError: Names the setting.
    """
    outputs = dict(_outputs_of(model))
    for setting, head in heads_of(model):
        own = outputs.get(f'{setting}.num_classes') or outputs.get(f'{setting}.num_things_classes')
        for name in ('loss_cls', 'loss_decode', 'loss'):
            loss = head.get(name)
            weights = loss.get('class_weight') if isinstance(loss, dict) else None
            if (
                own is not None
                and isinstance(weights, (list, tuple))
                and len(weights) not in (own, own + 1)
            ):
                raise DataError(
                    f'{setting}.{name}.class_weight has {len(weights)} weights for {own} classes. '
                    'Give one for each class, and one more where the head has "no object".'
                )


def check_labels(model: Any, largest: int, where: str) -> None:
    """Demand that a classifier has an output for every label.

    Raises:
        DataError: Names the setting.
    """
    for setting, head in heads_of(model):
        own = head.get('num_classes')
        if setting == 'model.head' and isinstance(own, int) and largest >= own:
            raise DataError(
                f'{where} has the label {largest}, counted from 0, and {setting}.num_classes is '
                f'{own}. Correct the labels, or set --cfg-options {setting}.num_classes='
                f'{largest + 1}.'
            )


def check_top_k(evaluators: Any, model: Any, num_classes: int, split: str) -> None:
    """Demand that a classifier has as many outputs as ``topk`` asks for.

    Raises:
        DataError: Names the evaluator.
    """
    own = [head.get('num_classes') for _, head in heads_of(model)]
    outputs = max([num_classes, *(number for number in own if isinstance(number, int))])
    for evaluator in evaluators_of(evaluators):
        top_k = evaluator.get('topk') or ()
        largest = max(top_k if isinstance(top_k, (list, tuple)) else (top_k,), default=0)
        if largest > outputs:
            raise DataError(
                f'{split}_evaluator asks for the top {largest} of {outputs} classes. Set its '
                'topk to (1,).'
            )


def check_ignored(model: Any, evaluators: Any, dataset: Any, pixels: Counter[int]) -> None:
    """Demand that heads and metric ignore what a segmentation data set ignores.

    Args:
        model: Settings of the model.
        evaluators: Evaluators of the split; none for training.
        dataset: Built, of mmseg.
        pixels: Number of pixels by label.

    Raises:
        DataError: An ignored value that occurs would be a class elsewhere.
    """
    ignored = dataset.ignore_index
    if not pixels[ignored] or ignored < len(dataset.metainfo.get('classes') or ()):
        return
    users = [(setting, head) for setting, head in heads_of(model) if 'head' in setting]
    metrics = [e for e in evaluators_of(evaluators) if name_of(e) == 'IoUMetric']
    for setting, user in [*users, *((f'the evaluator {name_of(m)}', m) for m in metrics)]:
        own = user.get('ignore_index', 255)
        if own != ignored:
            raise DataError(
                f'The data set ignores label {ignored}, which occurs, and {setting} ignores {own}: '
                f'it would take {ignored} for a class. Set ignore_index of the data set, of every '
                'head and of the metric, and data_preprocessor.seg_pad_val, to one value.'
            )


def check_metric_file(
    evaluators: Any,
    dataset: Any,
    classes: list[str],
    split: str,
    read: Callable[[str, str], CocoFile],
) -> list[str]:
    """Compare the images of a built data set with those that a COCO metric counts.

    Args:
        evaluators: Settings of the metrics.
        dataset: A data set of mmdet with ``img_id`` in each sample.
        classes: Names of the data set's classes.
        split: Name of the data set.
        read: Gives the file at a path that a setting names.

    Returns:
        What is odd.

    Raises:
        DataError: The metric does not know an image or a class.
    """
    odd = []
    for evaluator in coco_metrics(evaluators):
        path = evaluator.get('ann_file')
        if path is None or '://' in path:
            continue
        file = read(path, f'{split}_evaluator.ann_file')
        if not same_file(path, dataset.ann_file):
            file.check_classes(classes, measured=True)
        known = {dataset.get_data_info(index)['img_id'] for index in range(len(dataset))}
        strangers = known - file.image_ids
        if strangers:
            raise DataError(
                f'{file.head} does not list image {next(iter(strangers))!r} of '
                f'{dataset.ann_file}, so results could not be measured. Set both to one file, with '
                f'--cfg-options {split}_evaluator.ann_file={dataset.ann_file}.'
            )
        left_out = len(file.image_ids) - len(known)
        if left_out:
            odd.append(
                f'{file.head} lists {left_out} images that the data set leaves out (indices, '
                'filter_cfg); the metric counts their objects as not found.'
            )
    return odd


def evaluators_of(evaluators: Any) -> list[Any]:
    """The settings of metrics, of which there may be one or several."""
    return list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators or {}]


def coco_metrics(evaluators: Any) -> list[Any]:
    """Those that read an annotation file in the format of COCO's instances."""
    return [e for e in evaluators_of(evaluators) if name_of(e) == 'CocoMetric']


def name_of(config: Any) -> str:
    """The name of what a config builds."""
    kind = config.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def same_file(one: str, other: str) -> bool:
    """Whether two paths name one file."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
