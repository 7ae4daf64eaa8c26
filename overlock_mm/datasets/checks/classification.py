"""Questions to data sets of mmpretrain: which folder becomes which label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import DataError


def check_class_folders(folder: Path, classes: Any, where: str) -> None:
    """Compare the folders of images with the classes, before mmpretrain numbers them.

    Raises:
        DataError: A folder is no class, or the names of the classes are in another order.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not found:
        raise DataError(
            f'{folder} ({where}.data_prefix) has no folders, so no image has a class. It must '
            'hold a folder of images for each class.'
        )
    hidden = [name for name in found if name.startswith('.')]
    if hidden:
        raise DataError(
            f'{folder / hidden[0]} would become a class, as every folder does, and shift the '
            'labels of the others. Remove it.'
        )
    if classes is None:
        return
    unknown = sorted(set(found) - set(classes))
    if len(found) == len(classes) and not unknown and list(classes) != found:
        raise DataError(
            f'{folder} ({where}.data_prefix): folders get their labels in alphabetical order, and '
            'metainfo.classes lists the same names in another one, so that images would be called '
            f'by wrong names. Set the classes to {tuple(found)}.'
        )
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
