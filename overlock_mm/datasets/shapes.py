"""The synthetic data set: drawn from a seed, written as COCO, ADE20K and ImageNet folders.

``write_shapes`` writes detection and segmentation views of the same pictures::

    <root>/shapes.json                                    what was drawn; written last
    <root>/coco/{train2017,val2017}/*.png
    <root>/coco/annotations/instances_{train,val}2017.json
    <root>/ade/images/{training,validation}/*.png
    <root>/ade/annotations/{training,validation}/*.png

``write_classification`` writes single shapes in a folder per class::

    <root>/shapes.json
    <root>/{train,val}/<class>/*.png
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from overlock_mm.utils.files import replacing_folder

from .scene import CLASSES, Scene, check_image_size, draw_scene

METAINFO: dict[str, Any] = dict(
    classes=CLASSES,
    palette=[(230, 80, 60), (60, 150, 230), (250, 190, 40), (150, 90, 220), (60, 190, 110)],
)
# For the label maps, loaded as those of ADE20K: with reduce_zero_label=True their value 0 (pixels
# of which no surface covers half) is ignored, 1 becomes class 0, and so on. The data set class is
# mmseg's BaseSegDataset with img_suffix='.png', as ADE20KDataset refuses other class names.
SEMANTIC_METAINFO: dict[str, Any] = dict(
    classes=('background', *CLASSES), palette=[(90, 90, 90), *METAINFO['palette']]
)

Progress = Callable[[int, int], None]

# Raise it with every change of what is drawn or where it is written.
_VERSION = 1
_MANIFEST = 'shapes.json'
_COCO_NAMES = dict(train='train2017', val='val2017')
_ADE_NAMES = dict(train='training', val='validation')


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator for picture ``index`` of ``split`` ('train' or 'val')."""
    return np.random.default_rng([seed, tuple(_COCO_NAMES).index(split), index])


def write_shapes(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    image_size: tuple[int, int] = (128, 160),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Write pictures with instance masks (COCO) and label maps (ADE20K).

    The folder appears under its name only when it is complete. Picture i of a split depends on
    the seed, the split, the image size and i, not on the number of pictures.

    Args:
        root: Folder to write; its parents are made.
        num_train: Number of training pictures.
        num_val: Number of validation pictures.
        image_size: Height and width in pixels, 64 or more each.
        seed: Seed, 0 or more.
        overwrite: Replace a data set of other parameters.
        progress: Called with the number of pictures done and to do.

    Returns:
        True if the data set was written, False if the same one was there already.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If ``root`` holds a data set of other parameters and ``overwrite`` is
            False, or anything that this function did not write.
        ModuleNotFoundError: If pycocotools, which comes with mmdet, is not installed.
    """
    if importlib.util.find_spec('pycocotools') is None:
        raise ModuleNotFoundError(
            'COCO annotations are written with pycocotools, which is not installed: '
            'pip install pycocotools (it comes with mmdet)'
        )
    parameters = _parameters('scenes', num_train, num_val, image_size, seed)

    def fill(folder: Path) -> None:
        for split, count in (('train', num_train), ('val', num_val)):
            _write_split(folder, split, count, image_size, seed, report)

    report = _Report(progress, num_train + num_val)
    return _publish(Path(root), parameters, overwrite, fill)


def write_classification(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    image_size: tuple[int, int] = (96, 96),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Write pictures of one large shape each, in a folder per class as in ImageNet.

    Picture i shows class ``i % 5``. Arguments, result and errors are those of ``write_shapes``.
    """
    parameters = _parameters('classification', num_train, num_val, image_size, seed)

    def fill(folder: Path) -> None:
        for path, split, index in _classification_files(num_train, num_val):
            scene = draw_scene(
                scene_rng(seed, split, index),
                *image_size,
                num_instances=(1, 1),
                diameters=(0.5, 0.9),
                label=index % len(CLASSES),
            )
            _save_png(scene.image, folder / path)
            report.step()

    report = _Report(progress, num_train + num_val)
    return _publish(Path(root), parameters, overwrite, fill)


class _Report:
    """Counts the pictures for the caller's progress function."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _parameters(
    kind: str, num_train: int, num_val: int, image_size: tuple[int, int], seed: int
) -> dict[str, Any]:
    """Check the arguments; return them as the manifest records them."""
    check_image_size(*image_size)
    for name, value, least in (
        ('num_train', num_train, 1),
        ('num_val', num_val, 1),
        ('seed', seed, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}')
    return dict(
        kind=kind,
        version=_VERSION,
        seed=seed,
        image_size=list(image_size),
        num_train=num_train,
        num_val=num_val,
    )


def _file_name(index: int) -> str:
    return f'{index + 1:012d}.png'


def _classification_files(num_train: int, num_val: int) -> list[tuple[str, str, int]]:
    """Path, split and index of each picture."""
    return [
        (f'{split}/{CLASSES[index % len(CLASSES)]}/{_file_name(index)}', split, index)
        for split, count in (('train', num_train), ('val', num_val))
        for index in range(count)
    ]


def _files(parameters: dict[str, Any]) -> set[str]:
    """Return the files of a data set, relative to its root."""
    counts = dict(train=parameters['num_train'], val=parameters['num_val'])
    if parameters['kind'] == 'classification':
        pictures = _classification_files(counts['train'], counts['val'])
        return {_MANIFEST, *(path for path, _, _ in pictures)}
    files = {_MANIFEST}
    for split, count in counts.items():
        files.add(f'coco/annotations/instances_{_COCO_NAMES[split]}.json')
        for name in map(_file_name, range(count)):
            files.add(f'coco/{_COCO_NAMES[split]}/{name}')
            files.add(f'ade/images/{_ADE_NAMES[split]}/{name}')
            files.add(f'ade/annotations/{_ADE_NAMES[split]}/{name}')
    return files


def _publish(
    root: Path, parameters: dict[str, Any], overwrite: bool, fill: Callable[[Path], None]
) -> bool:
    """Let ``fill`` write the data set, unless it is there; return whether it was written."""
    root = root.expanduser().resolve()
    if _is_complete(root, parameters, overwrite):
        print_log(f'The data set in {root} is there already and is used again.', 'current')
        return False

    with replacing_folder(root) as fresh:
        fill(fresh)
        (fresh / _MANIFEST).write_text(json.dumps(parameters, indent=2) + '\n')
    print_log(f'Drew {root}: {_describe(parameters)}.', 'current')
    return True


def _describe(parameters: dict[str, Any]) -> str:
    return ', '.join(f'{name} {value}' for name, value in parameters.items())


def _is_complete(root: Path, parameters: dict[str, Any], overwrite: bool) -> bool:
    """Return whether the data set is at ``root`` as requested, so that nothing needs to be written.

    Raises:
        FileExistsError: If it may not be replaced.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / _MANIFEST).is_file():
        raise FileExistsError(
            f'{root} exists and is not a data set drawn by overlock_mm (it has no {_MANIFEST}): '
            'it is not overwritten; give the path of a new folder'
        )
    try:
        existing = json.loads((root / _MANIFEST).read_text())
        expected = _files(existing)
    except (ValueError, TypeError, KeyError) as error:
        raise FileExistsError(
            f'{root / _MANIFEST} cannot be read as the record of a drawn data set ({error!r}): '
            'the folder is not overwritten; remove it yourself or give the path of a new folder'
        ) from error

    present = {p.relative_to(root).as_posix() for p in root.rglob('*') if not p.is_dir()}
    missing = sorted(expected - present)
    if existing == parameters and not missing:
        return True
    if not overwrite:
        if existing == parameters:
            problem = f'lacks {len(missing)} of its files, {missing[0]} among them'
        else:
            problem = f'holds a data set with {_describe(existing)}'
        raise FileExistsError(
            f'{root} {problem}, but one with {_describe(parameters)} was requested: '
            'give another folder, or replace it with overwrite=True (--overwrite)'
        )
    foreign = sorted(present - expected)
    if foreign:
        raise FileExistsError(
            f'{root} also holds files that were not drawn ({foreign[0]} and {len(foreign) - 1} '
            'more), and replacing it would delete them: move them away or give another folder'
        )
    return False


def _save_png(pixels: np.ndarray, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def _write_split(
    folder: Path,
    split: str,
    count: int,
    image_size: tuple[int, int],
    seed: int,
    report: _Report,
) -> None:
    height, width = image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = draw_scene(scene_rng(seed, split, index), height, width)
        name = _file_name(index)
        _save_png(
            scene.image,
            folder / 'coco' / _COCO_NAMES[split] / name,
            folder / 'ade/images' / _ADE_NAMES[split] / name,
        )
        _save_png(scene.semantic, folder / 'ade/annotations' / _ADE_NAMES[split] / name)
        images.append(dict(id=index + 1, file_name=name, height=height, width=width))
        annotations += _coco_annotations(scene, index + 1, len(annotations) + 1)
        report.step()

    document = dict(
        info=dict(description='Shapes drawn by overlock_mm', version=str(_VERSION)),
        images=images,
        annotations=annotations,
        categories=[
            dict(id=label + 1, name=name, supercategory='shape')
            for label, name in enumerate(CLASSES)
        ],
    )
    path = folder / 'coco/annotations' / f'instances_{_COCO_NAMES[split]}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def _coco_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """One COCO annotation per instance, with the exact mask as compressed run lengths."""
    # Imported here, because drawing and the classification folders do not need it.
    from pycocotools import mask as run_lengths

    annotations = []
    instances = zip(scene.masks, scene.boxes.tolist(), scene.labels.tolist(), strict=True)
    for offset, (mask, (x1, y1, x2, y2), label) in enumerate(instances):
        code = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            dict(
                id=first_id + offset,
                image_id=image_id,
                category_id=label + 1,
                segmentation=dict(size=list(mask.shape), counts=code['counts'].decode('ascii')),
                area=int(mask.sum()),
                bbox=[x1, y1, x2 - x1, y2 - y1],
                iscrowd=0,
            )
        )
    return annotations
