"""Which backend was the fastest correct one on this device, as ``doctor --tune`` measured it.

The file ``OVERLOCK_BACKENDS``, or else ``overlock_mm/backends.json`` in ``XDG_CACHE_HOME`` or
``~/.cache``, has an entry for each device and set of versions::

    {"NVIDIA H100, torch 2.11.0, triton 3.6.0, overlock_mm 1.0.0": {
        "contmix float16 K=13": [[64000, "triton"], [1024000, "cuda"]]}}

with a list for each operator, dtype and kernel size: sizes of the map in elements, and the backend
to use for it. A call takes that of the nearest size, in the logarithm.
"""

import json
import logging
import math
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from overlock_mm.version import __version__

if TYPE_CHECKING:
    from overlock_mm.ops.selection import Call

logger = logging.getLogger('overlock_mm')

Entries = dict[str, list[tuple[int, str]]]


def cache_file() -> Path:
    """Where preferences are kept."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('OVERLOCK_BACKENDS') or Path(cache, 'overlock_mm/backends.json'))


@cache
def device_and_versions(device: torch.device) -> str:
    """What an entry holds for: another card, or another version of a compiler, is another entry."""
    try:
        triton = metadata.version('triton')
    except metadata.PackageNotFoundError:
        triton = 'none'
    versions = f'torch {torch.__version__}, triton {triton}, overlock_mm {__version__}'
    return f'{device_name(device)}, {versions}'


def topic(call: 'Call') -> str:
    """The calls among which only the size of the map decides."""
    return f'{call.op} {str(call.dtype).removeprefix("torch.")} K={call.kernel_size}'


def preferred(call: 'Call') -> str | None:
    """The backend that was measured to be the fastest for calls like this one, if any was."""
    stored = _stored()
    if not stored or not call.elements:
        return None
    sizes = stored.get(device_and_versions(call.device), {}).get(topic(call), [])
    if not sizes:
        return None
    return min(sizes, key=lambda entry: abs(math.log(entry[0] / call.elements)))[1]


@cache
def _stored() -> dict[str, Entries]:
    path = cache_file()
    try:
        content = json.loads(path.read_text())
        return {device: dict(entries) for device, entries in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning(
            '%s cannot be read (%s), so backends are chosen in their usual order. Remedy: delete '
            'the file, or write it again by python -m overlock_mm.doctor --tune.',
            path,
            error,
        )
        return {}


def store(device: torch.device, entries: Mapping[str, Mapping[int, str]]) -> None:
    """Keep what was measured beside what the file holds of other devices, versions and sizes.

    Args:
        device: Where it was measured.
        entries: For each :func:`topic`, sizes of the map in elements and the backend of each.
    """
    content = {name: dict(stored) for name, stored in _stored().items()}
    here = content.setdefault(device_and_versions(device), {})
    for name, sizes in entries.items():
        here[name] = sorted({**dict(here.get(name, ())), **sizes}.items())
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.{os.getpid()}')
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)
    _stored.cache_clear()


def device_name(device: torch.device) -> str:
    """What a measurement is of: the card, or the processor and its instruction set."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    # The first core speaks for all. Virtual machines give quite different processors one name.
    facts = dict(reversed([[part.strip() for part in x.split(':', 1)] for x in lines if ':' in x]))
    name = facts.get('model name') or platform.processor() or platform.machine()
    if 'cpu family' in facts:
        name += f' (family {facts["cpu family"]}, model {facts["model"]})'
    return f'{name}, {torch.backends.cpu.get_cpu_capability()}'
