"""Questions to data sets of mmpretrain: which folder becomes which label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import DataError


def check_class_folders(folder: Path, classes: Any, where: str) -> None:
    """Compare the folders of images with the classes, before mmpretrain numbers them.

    Raises:
        DataError: There are more or fewer folders than classes, a hidden one, or names in another
            order.
    """
    folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not folders:
        raise DataError(
            f'{folder} ({where}.data_prefix) has no folders, so no image has a class. It must '
            'hold a folder of images for each class.'
        )
    hidden = [name for name in folders if name.startswith('.')]
    if hidden:
        raise DataError(
            f'{folder / hidden[0]} would become a class, as every folder does, and shift the '
            'labels of the others. Remove it.'
        )
    if classes is None:
        return
    if len(folders) != len(classes):
        unknown = sorted(set(folders) - set(classes))
        raise DataError(
            f'{folder} ({where}.data_prefix) has {len(folders)} folders for {len(classes)} '
            f'classes; not among the classes are {_listed(unknown)}, without a folder are '
            f'{_listed(sorted(set(classes) - set(folders)))}. Every class needs its folder, which '
            "may be empty. Remove or rename folders, or set the data set's metainfo.classes and "
            'num_classes of the model.'
        )
    # Folders may have names of their own, such as the WordNet ids of ImageNet.
    if any(name in classes and classes[label] != name for label, name in enumerate(folders)):
        raise DataError(
            f'{folder} ({where}.data_prefix): folders get their labels in alphabetical order, and '
            'metainfo.classes has the same names in another order, so that images would be called '
            f'by wrong names. Set the classes to {tuple(folders)}.'
        )


def _listed(names: list[str], shown: int = 5) -> str:
    return ', '.join(names[:shown]) + (' ...' if len(names) > shown else '') or 'none'
