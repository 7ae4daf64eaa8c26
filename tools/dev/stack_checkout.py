#!/usr/bin/env python3
"""Keep a second checkout whose environment has another stack.

    python tools/dev/stack_checkout.py upstream

The folder ``.upstream`` then holds a copy of the project in which ``requirements/upstream/*.txt``
replace the files of the same names. Everything else follows: its own ``.venv``, its
own compiled operators (an extension fits only one torch), the same tests. Used by
``make test-upstream`` and ``make test-newest``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    'benchmarks',
    'configs',
    'docs',
    'overlock_mm',
    'requirements',
    'tests',
    'tools',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'LICENSE',
    'MANIFEST.in',
    'Makefile',
    'README.md',
    'mkdocs.yml',
    'model-index.yml',
    'pyproject.toml',
    'setup.py',
)
LEFT_OUT = shutil.ignore_patterns('__pycache__', '*.so')


def update_checkout(stack: str, target: Path) -> None:
    """Make ``target`` a copy of the project, except for what was built in it.

    Args:
        stack: The folder of ``requirements/`` whose pins the copy gets.
        target: The copy; made if it does not exist.

    Raises:
        FileNotFoundError: The project lacks one of its parts.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        source, copy = ROOT / name, target / name
        if not source.is_dir():
            shutil.copy2(source, copy)
            continue
        for old in copy.rglob('*'):
            if old.suffix != '.so' and (old.is_symlink() or old.is_file()):
                old.unlink()
        shutil.copytree(source, copy, symlinks=True, ignore=LEFT_OUT, dirs_exist_ok=True)
    for pins in (ROOT / 'requirements' / stack).glob('*.txt'):
        shutil.copy2(pins, target / 'requirements')


if __name__ == '__main__':
    stacks = sorted(path.name for path in (ROOT / 'requirements').iterdir() if path.is_dir())
    parser = argparse.ArgumentParser(description='Copy the project for another stack.')
    parser.add_argument('stack', choices=stacks)
    stack = parser.parse_args().stack
    update_checkout(stack, ROOT / f'.{stack}')
