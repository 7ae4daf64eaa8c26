"""Finding the pictures that a user means: a file, a folder or a pattern."""

from __future__ import annotations

from pathlib import Path

from overlock_mm.runtime.pictures import find_pictures
from overlock_mm.utils.images import why_unreadable

_SHOWN = 5


def find_images(source: str | Path, verified: bool = True) -> list[Path]:
    """Return the images that ``source`` names, sorted, after a check of each.

    Args:
        source: A file; a folder, of which the files with the suffix of an image count, not those of
            its subfolders; or a pattern such as ``'pictures/*.jpg'`` or ``'pictures/**/*.png'``.
        verified: Whether they must be common images of 8 or 16 bits; False for those that a config
            loads in a way of its own, with five bands for example.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A file is not an image; the message names the first such files.
    """
    paths = find_pictures(source)
    reasons = {p: why_unreadable(p) for p in paths} if verified else {}
    unreadable = [f'  {p} ({reason})' for p, reason in reasons.items() if reason]
    if unreadable:
        more = f'\n  and {len(unreadable) - _SHOWN} more' if len(unreadable) > _SHOWN else ''
        raise ValueError(
            f'{len(unreadable)} of {len(paths)} files cannot be read as images:\n'
            + '\n'.join(unreadable[:_SHOWN])
            + more
        )
    return paths


def output_stems(paths: list[Path]) -> list[str]:
    """Return a name for the results of each path: its stem, or its whole name if stems collide.

    Raises:
        ValueError: Files of two folders have the same name.
    """
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else path.name.replace('.', '_')
        for path, stem in zip(paths, stems, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'Results are named after the images, and several are called {twice[0]!r}. Give their '
            'folders one by one, each with an output folder of its own.'
        )
    return names
