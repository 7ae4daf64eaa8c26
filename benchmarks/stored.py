"""The files of results: their names, and what of an earlier run still counts."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import overlock_mm

RESULTS = Path(__file__).parent / 'results'
PACKAGE = Path(overlock_mm.__file__).parent
#: What runs in a benchmark.
MEASURED = ('ops', 'layers', 'models', 'deploy')
SOURCES = ('.py', '.h', '.cpp', '.cu', '.cuh')


def path_of(folder: Path, machine: dict[str, Any], kind: str) -> Path:
    """Where the results of a device are; ``kind`` begins the name, 'cpu' or 'networks-gpu'."""
    slug = re.sub(r'[^a-z0-9]+', '-', machine['device'].lower()).strip('-')
    return folder / f'{kind}-{slug}.json'


@cache
def sources(*further: str) -> str:
    """Digest of the code that is measured, with further folders of the package."""
    digest = hashlib.sha256()
    for folder in (*MEASURED, *further):
        for path in sorted((PACKAGE / folder).rglob('*')):
            if path.suffix in SOURCES:
                digest.update(path.relative_to(PACKAGE).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def earlier(path: Path, machine: dict[str, Any], same: tuple[str, ...]) -> dict[str, Any]:
    """The content of a file whose machine has the same values under some keys, or nothing."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding='utf-8'))
    return content if all(content['machine'].get(key) == machine[key] for key in same) else {}
