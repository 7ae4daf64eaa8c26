"""Questions to data sets of mmdet: what the library makes of an annotation file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .coco_file import CocoFile
from .errors import DataError
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
        file: In the format of COCO's instances.
        classes: Of the data set.
        measured: Whether COCO's evaluation reads the file too.

    Returns:
        The objects, and what is odd, but can be trained on.

    Raises:
        DataError: What would end the run, with the remedy.
    """
    head = file.head
    sizes = {}
    for image in file.images:
        if image.get('height') is None or image.get('width') is None:
            raise DataError(
                f'{head}: image {image["id"]!r} has no height and width. Add both, in pixels.'
            )
        sizes[image['id']] = (image['width'], image['height'])
    objects = Objects()
    odd = []
    strangers: Counter[Any] = Counter()
    beyond, corners = 0, True
    for annotation in file.annotations or ():
        size = sizes.get(annotation.get('image_id'))
        if size is not None:
            _check_fields(head, annotation, measured)
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
        told = (
            f'{head}: {sum(strangers.values())} annotations have a category_id that is none of '
            f'the categories {file.names}, for example {next(iter(strangers))!r}'
        )
        if not objects.total:
            raise DataError(f'{told}. Correct them, or add the category.')
        odd.append(f'{told}; they are left out.')
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


def _check_fields(head: str, annotation: dict, measured: bool) -> None:
    for name in (*_FIELDS, 'iscrowd') if measured else _FIELDS:
        if annotation.get(name) is None:
            raise DataError(
                f'{head}: annotation {annotation.get("id")!r} has no {name!r}. Add it'
                f'{_HINTS.get(name, "")} to every annotation.'
            )
    box = annotation['bbox']
    if len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        raise DataError(
            f'{head}: the bbox of annotation {annotation["id"]!r} is {box!r}. It must be the four '
            'numbers [x, y, width, height], in pixels.'
        )


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


def count_objects(dataset: Any, where: str) -> str:
    """Objects by class of a built ``CocoDataset``.

    Raises:
        DataError: Masks are learned, and an object has none.
    """
    loads_masks = any(getattr(t, 'with_mask', False) for t in transforms_of(dataset))
    labels: Counter[int] = Counter()
    ignored = empty = 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for instance in info.get('instances', ()):
            if loads_masks and 'mask' not in instance:
                raise DataError(
                    f'{dataset.ann_file} ({where}.ann_file): an object of {info["img_path"]} has '
                    'no segmentation, but the config learns masks. Without masks, take '
                    'configs/detection/cascade_overlock_*_boxes_only.py, or leave them out as it '
                    'does: model.roi_head.mask_head=None, model.roi_head.mask_roi_extractor=None, '
                    "LoadAnnotations without with_mask, and metric=['bbox']."
                )
            if instance.get('ignore_flag'):
                ignored += 1
            elif loads_masks and not _has_polygon(instance['mask']):
                empty += 1
            else:
                labels[instance.get('bbox_label', -1)] += 1
    classes = dataset.metainfo.get('classes') or ()
    told = short({name: labels[label] for label, name in enumerate(classes)})
    if ignored:
        told += f'; {ignored} crowd regions, which are not learned'
    if empty:
        told += f'; {empty} objects whose polygons have fewer than three points are ignored'
    return told


def _has_polygon(mask: Any) -> bool:
    """Whether mmdet keeps a mask: it ignores polygons of fewer than three points."""
    if not isinstance(mask, list):
        return True
    return any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)


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
    told = (
        f'{loaded.get("img_path")} is {size[1]} x {size[0]} pixels when loaded, but the '
        f'annotations ({where}) say {stated[1]} x {stated[0]}{reason}'
    )
    if masks_measured:
        raise DataError(f'{told}. Masks are measured at that size. Correct it in the file.')
    return (
        f'{told}. Do the objects lie where they should? tools/dataset_tools/check_data.py draws '
        'them.'
    )


def short(counts: dict[str, int], shown: int = 12) -> str:
    """Counts as text, the first ones only."""
    text = ', '.join(f'{name} {count}' for name, count in list(counts.items())[:shown])
    return f'{text} and {len(counts) - shown} more' if len(counts) > shown else text
