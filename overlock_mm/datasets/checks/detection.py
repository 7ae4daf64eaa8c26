"""Questions to data sets of mmdet: what the library makes of an annotation file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .coco_file import CocoFile
from .errors import DataError, Problems
from .loading import transforms_of

#: What building the data set reads without a default, and COCO's evaluation besides.
_FIELDS = ('id', 'category_id', 'bbox', 'area')
_HINTS = {'iscrowd': ' (0 for a single object)', 'area': ' (in square pixels)'}


@dataclass
class Objects:
    """How many objects of the classes there are, and what becomes of them."""

    total: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # by reason

    def __add__(self, other: Objects) -> Objects:
        return Objects(
            self.total + other.total, self.kept + other.kept, self.dropped + other.dropped
        )

    def reasons(self) -> str:
        """Why objects are dropped."""
        return '; '.join(f'{count} because {reason}' for reason, count in self.dropped.items())

    def check(self, head: str, images: int, where: str, learned: bool) -> list[str]:
        """Demand that something is left.

        Args:
            head: The files that hold them.
            images: Their number.
            where: The setting of the data set.
            learned: Whether they are trained on; to measure, a class may be missing.

        Returns:
            What is odd, but can be used.

        Raises:
            DataError: No object is left, or to learn, none of a class.
        """
        if not self.total:
            raise DataError(
                f"{head} has {images} images and no annotation of the config's classes: nothing "
                'can be learned or measured from it. Name another with --cfg-options '
                f'{where}.ann_file=FILE.'
            )
        gone = [name for name in self.total if not self.kept[name]]
        if gone and (learned or not self.kept):
            raise DataError(
                f'{head}: every object of {", ".join(map(repr, gone[:5]))} would be dropped '
                f'({self.reasons()}). Correct the annotations: image_id is the id of a listed '
                'image, also in its type; boxes are [x, y, width, height] in pixels; area is '
                'positive.'
            )
        if not self.dropped:
            return []
        lost = f', all of {", ".join(map(repr, gone[:5]))} among them' if gone else ''
        count = sum(self.dropped.values())
        return [f'{head}: {count} objects are dropped{lost}: {self.reasons()}.']


def check_annotations(
    file: CocoFile, classes: list[str], measured: bool
) -> tuple[Objects, list[str]]:
    """Look at the annotations as mmdet's ``CocoDataset`` does.

    Args:
        file: A file in the format of COCO's instances.
        classes: Names of the data set's classes.
        measured: Whether COCO's evaluation reads the file too.

    Returns:
        The objects, and what is odd, but can be trained on.

    Raises:
        DataError: What would end the run, with the remedy.
    """
    head = file.head
    _check_fields(file, measured)
    sizes = {image['id']: (image['width'], image['height']) for image in file.images}
    objects = Objects()
    odd = []
    strangers: Counter[Any] = Counter()
    beyond, corners = 0, True
    for annotation in file.annotations or ():
        size = sizes.get(annotation.get('image_id'))
        name = file.names.get(annotation.get('category_id'))
        if name is None:
            strangers[annotation.get('category_id')] += 1
            continue
        if name not in classes:
            continue
        objects.total[name] += 1
        reason = _reason_to_drop(annotation, size)
        if reason:
            objects.dropped[reason] += 1
        else:
            objects.kept[name] += 1
        if size is not None:
            x, y, width, height = annotation['bbox']
            beyond += x + width > 1.05 * size[0] + 1 or y + height > 1.05 * size[1] + 1
            corners = corners and width >= x and height >= y
    if strangers:
        text = (
            f'{head}: {sum(strangers.values())} annotations have a category_id that is none of '
            f'the categories {file.names}, for example {next(iter(strangers))!r}'
        )
        if not objects.total:
            raise DataError(f'{text}. Correct them, or add the category.')
        odd.append(f'{text}; they are left out.')
    if beyond and corners:
        odd.append(
            f'{head}: boxes look like [x1, y1, x2, y2], and COCO has [x, y, width, height]. '
            'tools/dataset_tools/check_data.py draws them.'
        )
    elif beyond:
        odd.append(f'{head}: {beyond} boxes reach beyond their images.')
    unused = {file.names.get(a.get('category_id')) for a in file.annotations or ()}
    unused -= {None, *classes}
    if unused:
        odd.append(f'{head}: {", ".join(sorted(map(str, unused)))} are no classes of the config.')
    if measured and any(a.get('id') == 0 for a in file.annotations or ()):
        odd.append(
            f'{head} has an annotation with the id 0, which COCO metrics take for "not found": '
            'AP becomes too low. Number annotations from 1.'
        )
    return objects, odd


def _check_fields(file: CocoFile, measured: bool) -> None:
    """Demand what building the data set and measuring read; each missing field is reported once.

    Raises:
        DataError: Has all of them, each with an example.
    """
    problems = Problems()
    images = file.images
    sizeless = [im['id'] for im in images if None in (im.get('height'), im.get('width'))]
    if sizeless:
        problems.add(
            f'{file.head}: image {_with_others(sizeless)} no height and width. Add both, in pixels.'
        )
    # mmdet never looks at those of images that are not listed.
    seen = [a for a in file.annotations or () if a.get('image_id') in file.image_ids]
    for name in (*_FIELDS, 'iscrowd') if measured else _FIELDS:
        lacking = [a.get('id') for a in seen if a.get(name) is None]
        if lacking:
            problems.add(
                f'{file.head}: annotation {_with_others(lacking)} no {name!r}. Add it'
                f'{_HINTS.get(name, "")} to every annotation.'
            )
    wrong = [a for a in seen if a.get('bbox') is not None and not _is_box(a['bbox'])]
    if wrong:
        problems.add(
            f'{file.head}: the bbox of annotation {wrong[0].get("id")!r} is {wrong[0]["bbox"]!r}'
            f'{_others(wrong)}. It must be the four numbers [x, y, width, height], in pixels.'
        )
    problems.raise_all()


def _with_others(ids: list[Any]) -> str:
    """``1 has``, or ``1 (and 5 more) has``."""
    return f'{ids[0]!r}{_others(ids)} has'


def _others(items: list[Any]) -> str:
    return f' (and {len(items) - 1} more)' if len(items) > 1 else ''


def _is_box(box: Any) -> bool:
    return len(box) == 4 and all(isinstance(value, (int, float)) for value in box)


def _reason_to_drop(annotation: dict, size: tuple[float, float] | None) -> str | None:
    """Why mmdet's ``CocoDataset`` leaves an object out, if it does."""
    if size is None:
        return 'no image has their image_id'
    if annotation.get('ignore'):
        return "they are marked 'ignore'"
    x, y, width, height = annotation['bbox']
    if annotation['area'] <= 0:
        return 'area is 0'
    if width < 1 or height < 1:
        return 'the box is narrower than a pixel (are its units relative?)'
    if min(x + width, size[0]) <= max(x, 0) or min(y + height, size[1]) <= max(y, 0):
        return 'the box lies outside of the image'
    return None


def count_objects(
    dataset: Any, where: str, transforms: Sequence[Any] | None = None, learned: bool = False
) -> str:
    """Count objects by class of a built data set of mmdet.

    Args:
        dataset: Fully initialised.
        where: The setting that holds it.
        transforms: Which load; by default its own.
        learned: Whether it is all that there is to learn from.

    Raises:
        DataError: Masks are learned, and an object has none, or all objects of a class have masks
            that the loader ignores; or there is nothing to learn.
    """
    if transforms is None:
        transforms = transforms_of(dataset)
    loaders = [t for t in transforms if getattr(t, 'with_mask', False)]
    polygons_only = any(not getattr(t, 'poly2mask', True) for t in loaders)
    labels: Counter[int] = Counter()
    without: Counter[str] = Counter()
    ignored: Counter[tuple[int, str]] = Counter()
    crowds = 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for instance in info.get('instances', ()):
            label = instance.get('bbox_label', -1)
            if loaders and 'mask' not in instance:
                without[info['img_path']] += 1
            elif instance.get('ignore_flag'):
                crowds += 1
            elif loaders and (reason := _reason_to_ignore(instance['mask'], polygons_only)):
                ignored[label, reason] += 1
            else:
                labels[label] += 1
    if without:
        raise DataError(
            f'{dataset.ann_file} ({where}.ann_file): an object of {next(iter(without))} has no '
            f'segmentation, and {without.total() - 1} more, but the config learns masks. Without '
            'masks, take configs/detection/cascade_overlock_*_boxes_only.py, or leave them out as '
            'it does: model.roi_head.mask_head=None, model.roi_head.mask_roi_extractor=None, '
            "LoadAnnotations without with_mask, and metric=['bbox']."
        )
    classes = dataset.metainfo.get('classes') or ()
    reasons: Counter[str] = Counter()
    for (label, reason), count in ignored.items():
        reasons[reason] += count
        if not labels[label] and not dataset.test_mode:
            name = classes[label] if 0 <= label < len(classes) else label
            raise DataError(
                f'{dataset.ann_file} ({where}.ann_file): every object of {name!r} would be '
                f'ignored, because {reason}. {_REMEDIES[reason]}'
            )
    if learned and not labels:
        raise DataError(
            f'{dataset.ann_file} ({where}.ann_file) leaves {len(dataset)} images and no object of '
            f'the classes {tuple(classes)[:10]}, so that nothing would be learned. Names of '
            'classes must be those of the annotations, capitals included: set metainfo.classes.'
        )
    text = short({name: labels[label] for label, name in enumerate(classes)})
    if crowds:
        text += f'; {crowds} crowd regions, which are not learned'
    for reason, count in reasons.items():
        text += f'; {count} ignored because {reason}'
    return text


_FEW_POINTS = 'their polygons have fewer than three points'
_RUN_LENGTHS = 'their masks are run lengths, and the pipeline loads polygons only'
_REMEDIES = {
    _FEW_POINTS: 'Correct the polygons.',
    _RUN_LENGTHS: 'Set poly2mask=True for LoadAnnotations in every training pipeline.',
}


def _reason_to_ignore(mask: Any, polygons_only: bool) -> str | None:
    """Why mmdet ignores an object with this mask, if it does."""
    if not isinstance(mask, list):
        return _RUN_LENGTHS if polygons_only else None
    if any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        return None
    return _FEW_POINTS


def check_image_size(loaded: dict, where: str, masks_measured: bool) -> str | None:
    """Compare the size of a loaded image with what the annotation file says.

    Returns:
        What is odd, if anything.

    Raises:
        DataError: Masks are measured, which happens at the size in the file.
    """
    size = loaded.get('ori_shape')
    stated = (loaded.get('height'), loaded.get('width'))
    if size is None or None in stated or tuple(size) == stated:
        return None
    reason = ': width and height are exchanged' if tuple(size) == stated[::-1] else ''
    text = (
        f'{loaded.get("img_path")} is {size[1]} x {size[0]} pixels when loaded, but the '
        f'annotations ({where}) say {stated[1]} x {stated[0]}{reason}'
    )
    if masks_measured:
        raise DataError(f'{text}. Masks are measured at that size. Correct it in the file.')
    return (
        f'{text}. Do the objects lie where they should? tools/dataset_tools/check_data.py draws '
        'them.'
    )


def short(counts: dict[str, int], shown: int = 12) -> str:
    """Counts as text, the first ones only."""
    text = ', '.join(f'{name} {count}' for name, count in list(counts.items())[:shown])
    return f'{text} and {len(counts) - shown} more' if len(counts) > shown else text
