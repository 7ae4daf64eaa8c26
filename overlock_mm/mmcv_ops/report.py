"""Report on the origin of mmcv's operators, for :mod:`overlock_mm.doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from packaging.requirements import Requirement

from overlock_mm.mmcv_ops.finder import EXTENSION, is_stand_in
from overlock_mm.mmcv_ops.registry import FAMILIES
from overlock_mm.mmcv_ops.remedies import (
    COMPILED,
    LITE,
    compile_mmcv,
    do_without,
    too_new_for_mmcv,
    torchvision_for,
)


def operator_lines() -> list[str]:
    """Return where mmcv's operators come from; nothing without mmcv."""
    if importlib.util.find_spec('mmcv') is None:
        return []
    try:
        module = importlib.import_module(EXTENSION)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return ['none, because mmcv does not load (see below)']
    if not is_stand_in(module):
        return [f'compiled with mmcv: {module.__file__}']
    by_library: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        by_library.setdefault(family.library, set()).update(family.serves)
    lines = [
        "overlock_mm's, because this mmcv has none that are compiled; others raise an error",
        *(
            f'  by {library}: {", ".join(sorted(names, key=str.lower))}'
            for library, names in by_library.items()
        ),
    ]
    if too_new_for_mmcv():
        lines.append(f'  A compiled mmcv is not needed, but can be had: {compile_mmcv()}.')
    return lines


def table() -> str:
    """Return the families of operators in Markdown, for docs/mmcv_operators.md."""
    rows = [
        (', '.join(f'`{name}`' for name in family.serves), family.library, family.differs)
        for family in set(FAMILIES.values())
    ]
    head = ('in `mmcv.ops`', 'computed by', "differs from mmcv's kernels"), ('---',) * 3
    lines = [*head, *sorted(rows, key=lambda row: row[0].lower())]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def operator_problems(versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is wrong with the installation of mmcv or torchvision, and what to do about it.

    Args:
        versions: Distribution -> version of what is installed.
    """
    names = [name for name in (*COMPILED, LITE) if name in versions]
    problems = torchvision_problems(versions, needed=bool(names))
    if LITE in names and len(names) > 1:
        problems.append(
            (
                f'{" and ".join(names)} are both installed and write over each other.',
                f'pip uninstall -y {" ".join(names)}, then install one of them again.',
            )
        )
    spec = importlib.util.find_spec('mmcv')
    if spec is not None:
        (folder, *_) = spec.submodule_search_locations or ['mmcv']
        problems += half_installed(Path(folder), names)
    return problems


def half_installed(folder: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return parts that mmcv's folder lacks, and binaries that this Python does not look at.

    Args:
        folder: That of the package ``mmcv``.
        names: Distributions of mmcv that are installed.
    """
    if not ((folder / '__init__.py').exists() and (folder / 'ops' / '__init__.py').exists()):
        return [
            (
                f'{folder} is only a part of mmcv; an installation or its removal ended early.',
                f'Delete that folder, pip uninstall -y {" ".join(names) or "mmcv"}, then '
                'install mmcv again.',
            )
        ]
    if any((folder / f'_ext{suffix}').exists() for suffix in EXTENSION_SUFFIXES):
        return []
    for name in names:
        recorded = [file.name for file in importlib.metadata.files(name) or ()]
        present = [file.name for file in folder.glob('_ext.*')]
        for binary in {*recorded, *present}:
            if re.match(r'_ext\.', binary):
                reason = 'is for another Python' if binary in present else 'is missing'
                return [
                    (
                        f"mmcv's compiled operators, {binary}, cannot be used: the file {reason}.",
                        f'{do_without()}; or {compile_mmcv()}.',
                    )
                ]
    return []


def torchvision_problems(versions: Mapping[str, str], needed: bool) -> list[tuple[str, str]]:
    """Return whether torchvision is installed and accepts this torch, by its own metadata.

    Args:
        versions: Distribution -> version of what is installed.
        needed: Whether it is a problem if it is not there.
    """
    if 'torch' not in versions:
        return []
    remedy = torchvision_for(versions['torch'])
    if 'torchvision' not in versions:
        what = "torchvision is not installed; detection and mmcv's operators need it."
        return [(what, remedy)] if needed else []
    for text in importlib.metadata.requires('torchvision') or ():
        needs = Requirement(text)
        if needs.name == 'torch' and not needs.specifier.contains(
            versions['torch'], prereleases=True
        ):
            what = (
                f'torchvision {versions["torchvision"]} needs torch {needs.specifier}, but torch '
                f'{versions["torch"]} is installed.'
            )
            return [(what, remedy)]
    return []


if __name__ == '__main__':
    importlib.import_module('overlock_mm.mmcv_ops.operators')
    print(table(), end='')
