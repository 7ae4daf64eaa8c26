"""Finding the pictures that a user means: a file, a folder or a pattern."""

from __future__ import annotations

import glob
from pathlib import Path

from overlock_mm.utils.images import why_unreadable

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
_SHOWN = 5


def find_images(source: str | Path, verified: bool = True) -> list[Path]:
    """The images that ``source`` names, sorted, every one of them looked into.

    Args:
        source: A file; a folder, of which the files with the suffix of an image count, not those of
            its subfolders; or a pattern such as ``'pictures/*.jpg'`` or ``'pictures/**/*.png'``.
        verified: Whether they must be common images of 8 or 16 bits; False for those that a config
            loads in a way of its own, with five bands for example.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A file is not an image; the message names the first such files.
    """
    path = Path(source)
    if path.is_dir():
        paths = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not paths:
            raise FileNotFoundError(
                f'The folder {str(source)!r} holds no images ({", ".join(IMAGE_SUFFIXES)}). For '
                f"those of its subfolders give a pattern, such as '{source}/**/*.jpg'."
            )
    elif path.exists():
        paths = [path]
    else:
        paths = [Path(p) for p in glob.glob(str(source), recursive=True) if Path(p).is_file()]
        if not paths:
            raise FileNotFoundError(
                f'There is no image, no folder and no match of a pattern at {str(source)!r}.'
            )
    reasons = {p: why_unreadable(p) for p in paths} if verified else {}
    unreadable = [f'  {p} ({reason})' for p, reason in reasons.items() if reason]
    if unreadable:
        more = f'\n  and {len(unreadable) - _SHOWN} more' if len(unreadable) > _SHOWN else ''
        raise ValueError(
            f'{len(unreadable)} of {len(paths)} files cannot be read as images:\n'
            + '\n'.join(unreadable[:_SHOWN])
            + more
        )
    return sorted(paths)


def output_stems(paths: list[Path]) -> list[str]:
    """A name for each path to write results under: its stem, or its whole name where two collide.

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
