"""What a machine must have before the environment is made; one function per question.

Used by setup_env.py, so it keeps to the standard library and to syntax of Python 3.8.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

SUPPORTED = ((3, 10), (3, 11), (3, 12))
CANDIDATES = ('python3', 'python3.12', 'python3.11', 'python3.10')

GB = 1_000_000_000

# Run by the interpreter under test, so it must parse in every Python 3.
PROBE = """
import json, os, sys, sysconfig
try:
    import venv, ensurepip
    can_make_venv = True
except ImportError:
    can_make_venv = False
include = sysconfig.get_paths()['include']
print(json.dumps(dict(
    version=list(sys.version_info[:3]), executable=sys.executable, prefix=sys.prefix,
    implementation=sys.implementation.name, can_make_venv=can_make_venv,
    include=include, has_headers=os.path.isfile(os.path.join(include, 'Python.h')))))
"""


class SetupError(Exception):
    """Something is missing on this machine; the text says what, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f'{problem}\n  Remedy: {remedy}')


def probe(python: str) -> dict | None:
    """Ask an interpreter about itself; None if it does not run (a dead pyenv shim, say)."""
    try:
        done = subprocess.run(
            [python, '-c', PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
        )
        return json.loads(done.stdout.decode()) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None


def interpreter_faults(facts: dict | None, venv: Path, can_skip_build) -> list[str]:
    """All reasons why this interpreter cannot carry the environment (none: it can)."""
    if facts is None:
        return ['not found, or it does not run']
    faults = []
    version = '.'.join(str(part) for part in facts['version'])
    if tuple(facts['version'][:2]) not in SUPPORTED:
        faults.append(f'is Python {version}')
    elif not facts['has_headers'] and not can_skip_build(facts['version']):
        faults.append(f'has no C headers to build mmcv with (Python.h in {facts["include"]})')
    if facts['implementation'] != 'cpython':
        faults.append(f'is {facts["implementation"]}, not CPython')
    if not facts['can_make_venv']:
        faults.append('has no modules venv and ensurepip')
    if Path(facts['prefix']).resolve() == venv.resolve():
        faults.append('belongs to the very environment that is to be made')
    return faults


def choose_python(venv: Path, wish: str | None, can_skip_build) -> dict:
    """The facts of the interpreter to use: `wish` if given, else the first that fits.

    Args:
        venv: the environment to be made; its own interpreter cannot serve.
        wish: name or path of the interpreter that the user wants.
        can_skip_build: from a Python version, whether a cached wheel spares the build of mmcv.

    Raises:
        SetupError: none fits; the message lists each candidate and why it was refused.
    """
    refused = []
    for name in [wish] if wish else CANDIDATES:
        facts = probe(name)
        faults = interpreter_faults(facts, venv, can_skip_build)
        if facts is not None and not faults:
            return facts
        refused.append(f'    {name}: {"; ".join(faults)}')
    raise SetupError(
        'No fitting Python: 3.10, 3.11 or 3.12 is needed. Tried:\n' + '\n'.join(refused),
        'install what is missing (Debian, Ubuntu: apt install python3 python3-venv python3-dev) '
        'or name another one: make env PYTHON=/path/to/python3.11',
    )


def check_disk(needs: list, free=lambda path: shutil.disk_usage(path).free) -> None:
    """Refuse when a file system lacks room for what will be written to it.

    Args:
        needs: tuples of folder (may not exist yet), bytes, what for.
        free: free bytes of the file system that holds an existing path.
    """
    by_device: dict = {}
    for folder, size, what in needs:
        existing = next(path for path in [folder, *folder.parents] if path.exists())
        entry = by_device.setdefault(existing.stat().st_dev, [existing, 0, []])
        entry[1] += size
        entry[2].append(f'{what} {size / GB:.0f} GB')
    for existing, size, parts in by_device.values():
        available = free(existing)
        if available < size:
            raise SetupError(
                f'Not enough disk space at {existing}: {available / GB:.1f} GB free, '
                f'{size / GB:.0f} GB needed ({", ".join(parts)}).',
                'free some space, or move parts elsewhere: TMPDIR and PIP_CACHE_DIR for '
                'downloads, OVERLOCK_CACHE for the wheel cache.',
            )


def check_writable(folder: Path, remedy: str) -> None:
    """Create `folder` and prove that a file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(f'{folder} is not writable: {error.strerror}.', remedy) from None


def check_compiler(include: str, environ: dict) -> None:
    """Prove that C++17 with Python's headers compiles, by compiling a few lines."""
    packages = (
        'install one with the headers of this Python (Debian, Ubuntu: apt install '
        'build-essential python3-dev; Fedora: dnf install gcc-c++ python3-devel)'
    )
    compiler = environ.get('CXX') or 'c++'
    if shutil.which(compiler, path=environ.get('PATH')) is None:
        raise SetupError(
            f'No C++ compiler: {compiler} is not on PATH. It is needed once, to build mmcv.',
            f'{packages}, or point CXX to yours.',
        )
    source = '#include <Python.h>\n#include <vector>\n#include <optional>\nint main() {}\n'
    command = [compiler, '-std=c++17', '-fsyntax-only', f'-I{include}', '-x', 'c++', '-']
    done = subprocess.run(
        command, input=source.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        lines = done.stdout.decode(errors='replace').splitlines()
        first = next((line for line in lines if 'error' in line), lines[0] if lines else '')
        raise SetupError(f'{compiler} cannot compile C++17: {first}', f'{packages}.')
