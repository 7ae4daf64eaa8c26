"""Images and label maps, looked at when they are first read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .errors import DataError
from .loading import check_complete, is_loader, load_with_name


def watch_files(dataset: Any) -> None:
    """Let the pipeline of a built data set name the file where something is wrong with it.

    JPEG and PNG files are complete, what cannot be loaded is named, masks and label maps have the
    size of their images, and labels are below the number of classes.

    Args:
        dataset: A data set of mmengine's kind, or a wrapper such as ``ConcatDataset`` around some.
    """
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            watch_files(inner)
    # Wrappers such as MultiImageMixDataset have a list here, and what they hold is watched.
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if not isinstance(transforms, list) or any(isinstance(t, _Watched) for t in transforms):
        return
    transforms[:] = [_Watched(t) if is_loader(t) else t for t in transforms]
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes:
        transforms.append(_LabelCheck(len(classes), getattr(dataset, 'ignore_index', None)))


class _Watched:
    """A loading transform whose errors name the file."""

    def __init__(self, load: Any) -> None:
        self.load = load

    def __call__(self, sample: dict) -> Any:
        check_complete(sample)
        return load_with_name(self.load, sample)

    def __repr__(self) -> str:
        return repr(self.load)


class _LabelCheck:
    """A transform: labels are less than the number of classes, or the ignored one.

    Semantic maps beside objects (HTC, panoptic) have their own classes and are not checked: only
    mmseg's data sets have an ``ignore_index``.
    """

    def __init__(self, num_classes: int, ignore_index: int | None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def __call__(self, packed: dict) -> dict:
        sample: Any = packed.get('data_samples')
        # Views of test-time augmentation come as a list, without need of labels.
        name = 'gt_label' if self.ignore_index is None else 'gt_sem_seg'
        labels = getattr(sample, name, None)
        labels = getattr(labels, 'data', labels)  # mmseg's are wrapped
        if isinstance(labels, Tensor):
            wrong = labels[labels >= self.num_classes]
            wrong = wrong[wrong != (-1 if self.ignore_index is None else self.ignore_index)]
            if wrong.numel() > 0:
                file = sample.get('seg_map_path') or sample.get('img_path')
                raise DataError(
                    f'{file} has label {int(wrong.max())}, counted from 0 after any '
                    f'reduce_zero_label; the data set has {self.num_classes} classes and '
                    f'{self.ignore_index} is ignored. Correct the file, or set metainfo.classes, '
                    'reduce_zero_label and num_classes to fit it.'
                )
        return packed
