"""Questions to data sets of mmdet: what the library makes of an annotation file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import DataError

_TRANSPOSING = (5, 6, 7, 8)  # values of the EXIF tag that exchange width and height
_ORIENTATION = 0x0112
#: What building the data set, and COCO's evaluation, read without a default.
_FIELDS = ('id', 'image_id', 'category_id', 'bbox', 'area')


def check_coco_file(dataset: Any, where: str, measured: bool) -> list[str]:
    """Look into an annotation file in the format of COCO's instances.

    Args:
        dataset: Built with ``lazy_init``, so that its paths and classes are those of the library.
        where: The setting that holds it.
        measured: Whether a metric reads the file too.

    Returns:
        What is odd, but can be trained on.

    Raises:
        DataError: What is wrong, with the file and the remedy.
    """
    file = Path(dataset.ann_file)
    head = f'{file} ({where}.ann_file)'
    try:
        content = json.loads(file.read_bytes())
        names = {category['id']: category['name'] for category in content['categories']}
        images = content['images']
        annotations = content.get('annotations')
        ids = Counter(image['id'] for image in images)
        for image in images:
            image['file_name']
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{head} is not in the format of COCO: {type(error).__name__}: {error}. Restore the '
            'file or name another.'
        ) from error
    shared = [number for number, count in ids.items() if count > 1]
    if shared:
        raise DataError(
            f'{head}: {len(shared)} image ids are used more than once, for example {shared[0]!r}; '
            'all but one image of an id would be lost. Give every image an id of its own.'
        )
    for image in images:
        if 'height' not in image or 'width' not in image:
            raise DataError(
                f'{head}: image {image["id"]!r} has no height and width. Add both, in pixels.'
            )
    classes = list(dataset.metainfo['classes'])
    _check_categories(head, names, [c['name'] for c in content['categories']], classes)
    if annotations is None:  # as in the files of COCO's test server
        return []
    fields = (*_FIELDS, 'iscrowd') if measured else _FIELDS
    for annotation in annotations:
        for field in fields:
            if field not in annotation:
                hint = {'iscrowd': ' (0 for a single object)', 'area': ' (in square pixels)'}
                raise DataError(
                    f'{head}: annotation {annotation.get("id")!r} has no {field!r}. Add it'
                    f'{hint.get(field, "")} to every annotation.'
                )
        if annotation['category_id'] not in names:
            raise DataError(
                f'{head}: annotation {annotation["id"]} has the unknown category_id '
                f'{annotation["category_id"]!r}; the categories of the file are {names}. Correct '
                'the annotation, or add the category.'
            )
    return _check_objects(head, dataset, where, annotations, names, images, measured)


def _check_categories(head: str, names: dict, listed: list[str], classes: list[str]) -> None:
    lacking = [name for name in classes if name not in listed]
    if lacking:
        raise DataError(
            f'{head} has no category {", ".join(map(repr, lacking[:5]))}'
            f'{" ..." if len(lacking) > 5 else ""}; it has {", ".join(listed)}. Set the data '
            "set's metainfo.classes to the names in the file, and num_classes of the model to "
            'their number.'
        )
    twice = [name for name, count in Counter(listed).items() if count > 1 and name in classes]
    if twice:
        same = [number for number, name in names.items() if name == twice[0]]
        raise DataError(
            f'{head}: the categories {", ".join(map(str, same))} are all called {twice[0]!r}, so '
            'labels and classes do not fit together. Remove the category that no annotation uses '
            '(some exports add one with the name of the project), or rename it.'
        )


def _check_objects(
    head: str,
    dataset: Any,
    where: str,
    annotations: list[dict],
    names: dict,
    images: list[dict],
    measured: bool,
) -> list[str]:
    classes = set(dataset.metainfo['classes'])
    sizes = {image['id']: (image['width'], image['height']) for image in images}
    total: Counter = Counter()
    kept: Counter = Counter()
    dropped: Counter = Counter()
    for annotation in annotations:
        name = names[annotation['category_id']]
        if name not in classes:
            continue
        total[name] += 1
        reason = _reason_to_drop(annotation, sizes.get(annotation['image_id']))
        if reason:
            dropped[reason] += 1
        else:
            kept[name] += 1
    reasons = '; '.join(f'{count} because {reason}' for reason, count in dropped.items())
    if not total:
        raise DataError(
            f'{head} has {len(images)} images and no annotation of the '
            "config's classes: nothing can be learned or measured from it. Name another with "
            f'--cfg-options {where}.ann_file=FILE.'
        )
    gone = [name for name in total if not kept[name]]
    if gone:
        raise DataError(
            f'{head}: every object of {", ".join(map(repr, gone[:5]))} would be dropped '
            f'({reasons}). Boxes must be [x, y, width, height] in pixels of the image.'
        )
    odd = []
    if _look_like_corners(annotations, sizes):
        odd.append(
            f'{head}: boxes look like [x1, y1, x2, y2], and COCO has [x, y, width, height]. '
            'tools/check_data.py draws them.'
        )
    if dropped:
        odd.append(f'{head}: {sum(dropped.values())} objects are dropped: {reasons}.')
    unused = {names[a['category_id']] for a in annotations} - classes
    if unused:
        odd.append(f'{head}: {", ".join(sorted(unused))} are no classes of the config.')
    if measured and any(annotation['id'] == 0 for annotation in annotations):
        odd.append(
            f'{head} has an annotation with the id 0, which COCO metrics take for "not found": '
            'AP becomes too low. Number annotations from 1.'
        )
    return odd


def _reason_to_drop(annotation: dict, size: tuple[float, float] | None) -> str | None:
    """Why mmdet's ``CocoDataset`` leaves an object out, if it does."""
    if size is None:
        return 'no image has their image_id'
    x, y, width, height = annotation['bbox']
    if annotation['area'] <= 0:
        return 'area is 0'
    if width < 1 or height < 1:
        return 'the box is narrower than a pixel (are its units relative?)'
    if min(x + width, size[0]) <= max(x, 0) or min(y + height, size[1]) <= max(y, 0):
        return 'the box lies outside of the image'
    return None


def _look_like_corners(annotations: list[dict], sizes: dict[Any, tuple[float, float]]) -> bool:
    """Whether no box is narrower than its distance from the origin, and some leave their image."""
    leaves = False
    for annotation in annotations:
        x, y, width, height = annotation['bbox']
        if width < x or height < y:
            return False
        limits = sizes.get(annotation['image_id'], (float('inf'), float('inf')))
        leaves |= x + width > limits[0] + 1 or y + height > limits[1] + 1
    return leaves


def check_built(dataset: Any, where: str, sample: list[int]) -> list[str]:
    """Ask a built detection data set about labels, masks and the sizes of its images.

    Raises:
        DataError: Labels and class names do not fit, masks are missing, or sizes are exchanged.
    """
    loads_masks = any(getattr(t, 'with_mask', False) for t in transforms_of(dataset))
    for index in range(len(dataset)) if loads_masks else ():
        info = dataset.get_data_info(index)
        if 'segments_info' in info:
            break
        if any('mask' not in instance for instance in info['instances']):
            raise DataError(
                f'{dataset.ann_file} ({where}.ann_file): an object of {info["img_path"]} has no '
                'segmentation, but the config learns masks. Without masks, take '
                'configs/detection/cascade_overlock_*_boxes_only.py, or leave them out as it does: '
                'model.roi_head.mask_head=None, model.roi_head.mask_roi_extractor=None, '
                "LoadAnnotations without with_mask, and metric=['bbox']."
            )
    for index in sample:
        info = dataset.get_data_info(index)
        _check_size(info, loads_masks, where)
    return []


def check_label_order(dataset: Any, where: str) -> None:
    """Demand that label ``i`` of a built ``CocoDataset`` is the class with the name ``i``."""
    classes = list(dataset.metainfo['classes'])
    content = json.loads(Path(dataset.ann_file).read_bytes())
    names = {category['id']: category['name'] for category in content['categories']}
    labels = [names[number] for number in dataset.cat_ids]
    if labels != classes:
        raise DataError(
            f'{dataset.ann_file} ({where}.ann_file) lists its categories in another order than '
            'metainfo.classes; labels follow the file, so that objects would be called by wrong '
            f'names. Set the classes of train, val and test to {tuple(labels)}, and let all files '
            'list the categories in this order.'
        )


def transforms_of(dataset: Any) -> list[Any]:
    """The transforms of a data set; wrappers such as MultiImageMixDataset have a bare list."""
    pipeline = getattr(dataset, 'pipeline', None) or []
    return list(getattr(pipeline, 'transforms', pipeline))


def _check_size(info: dict, loads_masks: bool, where: str) -> None:
    path = info.get('img_path')
    if not isinstance(path, str) or '://' in path or 'height' not in info:
        return
    try:
        with Image.open(path) as image:
            size = image.size
            turned = image.getexif().get(_ORIENTATION) in _TRANSPOSING
    except (OSError, SyntaxError, ValueError):
        return  # the check of files says more
    if turned:
        size = size[::-1]  # as OpenCV loads it
    stated = (info['width'], info['height'])
    if size != stated and size == stated[::-1] and loads_masks:
        reason = 'its EXIF orientation turns it' if turned else 'width and height are exchanged'
        raise DataError(
            f'{path} is {size[0]} x {size[1]} when loaded, but the annotations ({where}) say '
            f'{stated[0]} x {stated[1]}: {reason}, and masks would be scrambled. Correct the '
            'sizes, or turn the pixels and remove the EXIF tag (Pillow: ImageOps.exif_transpose) '
            'in the orientation in which the objects were annotated.'
        )
