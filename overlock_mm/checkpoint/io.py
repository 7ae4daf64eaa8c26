"""Reading checkpoint files without executing anything in them."""

import pickle
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from overlock_mm.checkpoint.errors import CheckpointError

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:  # numpy 1
    from numpy.core.multiarray import _reconstruct, scalar  # type: ignore[no-redef]

#: Keys under which files keep the state dict, in order of preference.
_CONTAINERS = ('state_dict', 'model')


def _history_buffer_method(owner: type, name: str) -> Callable[..., Any]:
    """Stands in for ``builtins.getattr``, with which mmengine's logs name their methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed.')
    return getattr(owner, name)


#: Beyond tensors, what mmengine's own training checkpoints hold: the history of the
#: logged values. Both names of numpy's core, as files of numpy 1 and 2 differ. And the
#: command line that timm keeps in its own, with which the classifiers were trained.
SAFE_GLOBALS: list[Any] = [
    Namespace,
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in '?bhilqBHILQefd'),
    (_history_buffer_method, 'builtins.getattr'),
    *(
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for core in ('core', '_core')
        for function in (scalar, _reconstruct)
    ),
]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU.

    Args:
        path: A local file, or an http(s) address, which is downloaded once into
            torch's hub folder.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: Truncated, not a checkpoint, or it holds objects other than
            tensors and logged values.
    """
    address = str(path)
    local = _download(address) if address.startswith(('http://', 'https://')) else Path(path)
    if not local.is_file():
        raise FileNotFoundError(f'No checkpoint file at {local}.')
    # Up to torch 2.6 the context forgets at its end what was allowed before it, too.
    allowed = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([g for g in SAFE_GLOBALS if g not in allowed]):
            content = torch.load(local, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{local} is not a checkpoint that can be read safely: it is damaged or holds more '
            f'than tensors and logged values. {_first_sentence(error)}'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f'{local} ({local.stat().st_size} bytes) is not a complete checkpoint file. Copy or '
            f'download it again. {_first_sentence(error)}'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{local} holds a {type(content).__name__}, not a state dict.')
    return content


def state_dict_of(content: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The state dict within the content of a checkpoint file.

    Raises:
        CheckpointError: There is none.
    """
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state_dict = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(
            f'{source} holds no tensors at its top level or under {", ".join(_CONTAINERS)}; its '
            f'keys are {", ".join(map(str, list(content)[:5]))}.'
        )
    return {name.removeprefix('module.'): value for name, value in state_dict.items()}


def _download(address: str) -> Path:
    target = Path(torch.hub.get_dir(), 'checkpoints', address.rsplit('/', 1)[-1])
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(target))  # complete or not at all
        except OSError as error:
            raise CheckpointError(
                f'{address} cannot be downloaded ({error}). Fetch it by other means and name the '
                f'local file, or put it at {target}.'
            ) from error
    return target


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'[{type(error).__name__}: {lines[0][:160] if lines else ""}]'
