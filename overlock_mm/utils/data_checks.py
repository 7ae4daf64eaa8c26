"""What is wrong with a data set, told with the file and the remedy.

Annotation files and folders are looked at before a run (:func:`check_contents`); images and label
maps when they are first read (:func:`watch_files`), which costs microseconds each.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image

#: How many files of a data set are looked for before a run.
_SAMPLE = 20
_IGNORED_LABEL = 255
#: The last bytes of a complete file.
_ENDINGS = {
    '.jpg': b'\xff\xd9',
    '.jpeg': b'\xff\xd9',
    '.png': b'IEND\xaeB\x60\x82',
}


class DataError(ValueError):
    """A data set cannot be learned or measured from as the config says."""

    def __init__(self, message: str) -> None:
        # A loader makes an error of a worker anew, with the worker's traceback before its message.
        name = f'{type(self).__module__}.{type(self).__qualname__}: '
        super().__init__(message.rpartition(name)[2].rstrip())


def check_contents(dataset: ConfigDict, scope: str, where: str) -> None:
    """Look into the annotation file or the folders of a data set.

    Reading the annotation file of COCO's training images takes a few seconds.

    Args:
        dataset: Its config, without wrappers. Its paths exist.
        scope: Where its type is registered: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        where: The setting that holds it, such as ``'train_dataloader.dataset'``.

    Raises:
        DataError: Nothing is annotated, categories or classes do not fit, or files are missing.
    """
    with DATASETS.switch_scope_and_registry(scope) as registry:
        cls = registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    families = {base.__name__ for base in cls.__mro__}
    root = Path(dataset.get('data_root') or '')
    classes = (dataset.get('metainfo') or {}).get('classes') or cls.METAINFO.get('classes')
    if isinstance(classes, str):
        classes = Path(classes).read_text().split('\n')
    prefix = dataset.get('data_prefix') or {}
    if 'CocoDataset' in families:
        images = root / prefix.get('img', '')
        _check_coco(root / dataset.ann_file, images, classes, f'{where}.ann_file')
    elif 'BaseSegDataset' in families:
        _check_label_maps(dataset, cls, root, prefix, where)
    elif 'CustomDataset' in families:
        listed = dataset.get('ann_file') or (root / f'meta/{dataset.get("split")}.txt').is_file()
        if not listed and dataset.get('with_label', True) and dataset.get('split') != 'test':
            folder = prefix if isinstance(prefix, str) else prefix.get('img_path', '')
            _check_class_folders(root / folder, classes, where)


def check_num_classes(model: Any, num_classes: int, where: str = 'model') -> None:
    """Demand that every part of a model has room for the classes of the data set.

    Args:
        model: Config of the model.
        num_classes: Number of the data set's classes.
        where: The setting that holds the config.

    Raises:
        DataError: A part has fewer classes, and more than one: one means any object.
    """
    if isinstance(model, dict):
        own = model.get('num_classes')
        if isinstance(own, int) and 1 < own < num_classes:
            raise DataError(
                f'{where}.num_classes is {own}, but the data set has {num_classes} classes. Set '
                f'--cfg-options {where}.num_classes={num_classes}, or give the data set its '
                'classes (dataset.metainfo.classes).'
            )
        for key, value in model.items():
            check_num_classes(value, num_classes, f'{where}.{key}')
    elif isinstance(model, (list, tuple)):
        for index, value in enumerate(model):
            check_num_classes(value, num_classes, f'{where}.{index}')


def watch_files(dataset: Any) -> None:
    """Check every image before, and every label map after, the pipeline of a built data set.

    Args:
        dataset: Of mmengine's kind; wrappers such as ``ConcatDataset`` are looked into.
    """
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            watch_files(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if pipeline is not None:
        classes = dataset.metainfo.get('classes')
        pipeline.transforms.insert(0, _check_files)
        pipeline.transforms.append(_LabelCheck(len(classes) if classes else _IGNORED_LABEL))


def _check_coco(file: Path, images: Path, classes: Sequence[str] | None, setting: str) -> None:
    try:
        content = json.loads(file.read_bytes())
        names = {category['id']: category['name'] for category in content['categories']}
        file_names = [image['file_name'] for image in content['images']]
        annotations = content.get('annotations')
        used = [(a['id'], a['category_id']) for a in annotations or ()]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{file} ({setting}) is not in the format of COCO: {type(error).__name__}: {error}. '
            'Restore the file or name another.'
        ) from error
    _check_sample((images / name for name in file_names), len(file_names), f'{file} names it')
    for number, category in used:
        if category not in names:
            raise DataError(
                f'{file} ({setting}): annotation {number} has the unknown category_id {category}; '
                f'the categories of the file are {names}. Correct the annotation, or add the '
                'category.'
            )
    if classes is not None:
        lacking = [name for name in classes if name not in names.values()]
        if lacking:
            raise DataError(
                f'{file} ({setting}) has no category {", ".join(map(repr, lacking[:5]))}'
                f'{" ..." if len(lacking) > 5 else ""}; it has {", ".join(names.values())}. Set '
                "the data set's metainfo.classes to the names in the file, and num_classes of the "
                'model to their number.'
            )
        ignored = {names[c] for _, c in used} - set(classes)
        if ignored:
            print_log(
                f'{file}: {", ".join(sorted(ignored))} are no classes of the config; their '
                'annotations are not used.',
                'current',
            )
        used = [pair for pair in used if names[pair[1]] in classes]
    # The images of COCO's test server come without `annotations`.
    if annotations is not None and not used:
        raise DataError(
            f'{file} ({setting}) has {len(file_names)} images and no annotation of the '
            "config's classes: nothing can be learned or measured from it. Name another with "
            f'--cfg-options {setting}=FILE.'
        )


def _check_label_maps(
    dataset: ConfigDict, cls: type, root: Path, prefix: ConfigDict, where: str
) -> None:
    def suffix(name: str, default: str) -> str:
        parameter = inspect.signature(cls).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            default = parameter.default
        return dataset.get(name, default)

    if dataset.get('ann_file') or 'img_path' not in prefix:
        return
    images = root / prefix['img_path']
    ending = suffix('img_suffix', '.jpg')
    sample = sorted(islice(images.rglob(f'*{ending}'), _SAMPLE))
    if not sample:
        raise DataError(
            f'{images} ({where}.data_prefix.img_path) has no file that ends in {ending}. Give the '
            f'right folder, or the ending with --cfg-options {where}.img_suffix=ENDING.'
        )
    if 'seg_map_path' in prefix:
        maps = root / prefix['seg_map_path']
        ending = suffix('seg_map_suffix', '.png')
        expected = (maps / image.relative_to(images).with_suffix(ending) for image in sample)
        _check_sample(expected, len(sample), f'it is the label map of an image in {images}')


def _check_class_folders(folder: Path, classes: Sequence[str] | None, where: str) -> None:
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not found:
        raise DataError(
            f'{folder} ({where}.data_prefix) has no folders, so no image has a class. It must '
            'hold a folder of images for each class.'
        )
    if classes is None:
        return
    unknown = sorted(set(found) - set(classes))
    # Folders may have names of their own, such as the WordNet ids of ImageNet.
    if len(found) == len(classes) and len(unknown) in (0, len(found)):
        return
    known = 'none' if len(unknown) == len(found) else ', '.join(sorted(set(classes) & set(found)))
    raise DataError(
        f'{folder} ({where}.data_prefix) has {len(found)} folders for {len(classes)} classes; '
        f'not among the classes are {", ".join(unknown[:5]) or "none"}'
        f'{" ..." if len(unknown) > 5 else ""} (known: {known[:200]}). Remove or rename folders, '
        "or set the data set's metainfo.classes and num_classes of the model."
    )


def _check_sample(files: Iterator[Path], count: int, why: str) -> None:
    for file in islice(files, 0, None, max(1, count // _SAMPLE)):
        if not file.is_file():
            raise DataError(
                f'{file} is missing ({why}). Complete the data set, or set data_root and '
                'data_prefix to the right folders.'
            )


def _check_files(sample: dict) -> dict:
    """A transform: the files of a sample are there and complete."""
    for key in ('img_path', 'seg_map_path'):
        path = sample.get(key)
        if path is not None and '://' not in path:
            _check_complete(path)
    return sample


def _check_complete(path: str) -> None:
    ending = _ENDINGS.get(os.path.splitext(path)[1].lower(), b'')
    try:
        with open(path, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(ending)))
            if size > 0 and file.read() == ending:
                return
        # Some sound files end otherwise; decoding tells. OpenCV fills what is missing with grey.
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise DataError(
            f'{path} cannot be read as an image: {error}. Copy it again, or remove it from the '
            'data set.'
        ) from error


class _LabelCheck:
    """A transform: labels are less than the number of classes, or 255, which is ignored."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, packed: dict) -> dict:
        sample = packed.get('data_samples')
        # Views of test-time augmentation come as a list, without need of labels.
        for name in ('gt_sem_seg', 'gt_label'):
            labels = getattr(sample, name, None)
            if sample is None or labels is None:
                continue
            labels = getattr(labels, 'data', labels)  # mmseg's are wrapped
            largest = labels.max()
            if largest < self.num_classes:
                continue
            wrong = labels[(labels >= self.num_classes) & (labels != _IGNORED_LABEL)]
            if wrong.numel() > 0:
                file = sample.get('seg_map_path') or sample.get('img_path')
                raise DataError(
                    f'{file} has label {int(wrong.max())}, counted from 0 after any '
                    f'reduce_zero_label; the data set has {self.num_classes} classes and '
                    f'{_IGNORED_LABEL} is ignored. Correct the file, or set metainfo.classes, '
                    'reduce_zero_label and num_classes to fit it.'
                )
        return packed
