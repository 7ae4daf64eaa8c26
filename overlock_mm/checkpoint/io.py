"""Reading checkpoint files without executing anything in them."""

import importlib.util
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from overlock_mm.checkpoint.errors import CheckpointError

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:  # numpy 1
    from numpy.core.multiarray import _reconstruct, scalar  # type: ignore[no-redef]

#: Keys under which files keep the state dict, in order of preference. timm keeps an average of the
#: weights beside the last ones; the average is what it publishes and evaluates.
_CONTAINERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'model_state_dict', 'module')
#: What DataParallel puts before every name.
_WRAPPER = 'module.'
#: What torch.compile puts into names, wherever the compiled module is.
_COMPILED = '_orig_mod.'
#: Entries of averaged models beside the wrapped ones: mmengine's and torch's.
_COUNTERS = ('steps', 'n_averaged')


def _history_buffer_method(owner: type, name: str) -> Callable[..., Any]:
    """Replaces ``builtins.getattr``, with which mmengine's logs name their methods."""
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
    """Read a checkpoint file, on the CPU and in one layout.

    For every layout of the file (a bare state dict, one under ``state_dict``, ``model`` or
    another usual key, names behind ``module.`` or ``_orig_mod.``, safetensors), the result has the
    weights under ``state_dict``, with the names of the unwrapped model, and a ``meta``. Every tool
    reads by this function, and :func:`read_everywhere` makes mmengine do so too.

    Args:
        path: A local file, or an http(s) address, which is downloaded once into
            torch's hub folder.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: Truncated, not a checkpoint, without tensors, or it holds objects other
            than tensors and logged values.
        ImportError: The file is one of safetensors, whose package is missing.
    """
    address = str(path)
    local = _download(address) if address.startswith(('http://', 'https://')) else Path(path)
    if not local.is_file():
        raise FileNotFoundError(f'No checkpoint file at {local}.')
    if local.suffix == '.safetensors':
        return {'state_dict': state_dict_of(_read_safetensors(local), local), 'meta': {}}
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
    rest = {
        key: value
        for key, value in content.items()
        if key not in _CONTAINERS and not isinstance(value, Tensor)
    }
    return {'meta': {}, **rest, 'state_dict': state_dict_of(content, path)}


def read_everywhere() -> None:
    """Let mmengine and the libraries on it read checkpoints by :func:`read_checkpoint`.

    Runners, hooks and inferencers then get the content that was checked, not their own reading of
    the file. It holds for this process.
    """

    def load(filename: str, map_location: Any = None) -> dict[str, Any]:
        # Always on the CPU: loading copies each tensor to the device of its module.
        return read_checkpoint(Path(filename).expanduser() if '://' not in filename else filename)

    CheckpointLoader.register_scheme(('', 'http://', 'https://'), loader=load, force=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if importlib.util.find_spec('safetensors') is None:
        raise ImportError(f'{path} needs a package that is missing: pip install safetensors')
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path} ({path.stat().st_size} bytes) is not a complete safetensors file. Copy or '
            f'download it again. {_first_sentence(error)}'
        ) from error


def state_dict_of(content: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """Return the state dict in the content of a checkpoint file, with the names of a plain model.

    Raises:
        CheckpointError: There is none.
    """
    keys = [key for key in _CONTAINERS if isinstance(content.get(key), Mapping) and content[key]]
    if keys:
        content = content[keys[0]]
        if len(keys) > 1:
            print_log(
                f'{source} has weights under {", ".join(keys)}; those of {keys[0]} are taken.',
                logger='current',
            )
    state_dict = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(
            f'{source} holds no tensors at its top level or under {", ".join(_CONTAINERS)}; its '
            f'keys are {", ".join(map(str, list(content)[:5]))}.'
        )
    wrapped = [name for name in state_dict if name not in _COUNTERS]
    prefix = _WRAPPER if wrapped and all(name.startswith(_WRAPPER) for name in wrapped) else ''
    if prefix:
        state_dict = {name: state_dict[name] for name in wrapped}

    def plain(name: str) -> str:
        return f'{name}.'.removeprefix(prefix).replace(_COMPILED, '')[:-1]

    # An OrderedDict, as modules look for the version of their own entries in an attribute of it.
    result = OrderedDict((plain(name), value) for name, value in state_dict.items())
    versions = getattr(content, '_metadata', {})
    result._metadata = {plain(name): value for name, value in versions.items()}  # type: ignore[attr-defined]
    return result


def _download(address: str) -> Path:
    target = Path(torch.hub.get_dir(), 'checkpoints', address.rsplit('/', 1)[-1])
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(target))  # atomic
        except OSError as error:
            raise CheckpointError(
                f'{address} cannot be downloaded ({error}). Fetch it by other means and name the '
                f'local file, or put it at {target}.'
            ) from error
    return target


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'[{type(error).__name__}: {lines[0][:160] if lines else ""}]'
