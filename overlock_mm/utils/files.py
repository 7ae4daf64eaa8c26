"""Atomic writes of output files and folders."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, with its suffix, which replaces it at the end.

    What was written is flushed to the disk first, so a reader finds the old content or the new one,
    even after a crash of the machine. An error within the block removes what was written and leaves
    an older file as it was. A killed process leaves the hidden ``.partial-NAME`` behind, which the
    next one replaces.

    Raises:
        OSError: It cannot be written; of a full disk, the message names the file and the remedy.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.partial-{path.name}')
    try:
        yield partial
        with partial.open('rb') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # The system's own message lacks the path where a write fails.
        message = 'No space left on device, or a quota is reached; free some, or write elsewhere'
        raise OSError(error.errno, message, str(path)) from error
    finally:
        # An unavailable file system refuses this too, with a less informative error.
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which replaces it, and an older folder, at the end.

    An error within the block leaves an older folder as it was. A killed process leaves its hidden
    temporary folder behind.
    """
    # An absolute path without a final link: what is renamed below is a folder, not a link to it.
    path = Path(path).expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    replaces = path.exists()  # a folder that appears meanwhile is not replaced
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as temporary:
        # A folder inside, as those of tempfile are closed to other users.
        fresh, replaced = Path(temporary, 'fresh'), Path(temporary, 'replaced')
        fresh.mkdir()
        yield fresh
        if replaces:
            os.rename(path, replaced)
        try:
            os.rename(fresh, path)
        except BaseException:
            if replaces:
                os.rename(replaced, path)
            raise


def write_json(path: str | Path, content: Any) -> None:
    """Write plain data as indented JSON.

    Raises:
        ValueError: It holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + '\n'
    with replacing(path) as partial:
        partial.write_text(text)
