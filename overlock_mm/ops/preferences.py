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
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from overlock_mm.ops.call import Call
from overlock_mm.version import __version__

logger = logging.getLogger('overlock_mm')

Entries = dict[str, list[tuple[int, str]]]


def cache_file() -> Path:
    """Return the file with the preferences."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('OVERLOCK_BACKENDS') or Path(cache, 'overlock_mm/backends.json'))


@cache
def device_and_versions(device: torch.device) -> str:
    """Return the key of an entry. Another card, or another version of a compiler, has another."""
    try:
        triton = metadata.version('triton')
    except metadata.PackageNotFoundError:
        triton = 'none'
    versions = f'torch {torch.__version__}, triton {triton}, overlock_mm {__version__}'
    return f'{device_name(device)}, {versions}'


def topic(call: Call) -> str:
    """Return the name of all calls that only differ in the size of the map."""
    return f'{call.op} {str(call.dtype).removeprefix("torch.")} K={call.kernel_size}'


def preferred(call: Call) -> str | None:
    """Return the backend that was measured to be the fastest for such calls, or None."""
    if not stored() or not call.elements:
        return None
    sizes = stored().get(device_and_versions(call.device), {}).get(topic(call), [])
    if not sizes:
        return None
    return min(sizes, key=lambda entry: abs(math.log(entry[0] / call.elements)))[1]


@cache
def stored() -> dict[str, Entries]:
    """Return the content of the file, which is read once."""
    path = cache_file()
    try:
        return {
            device: {
                name: [_entry(*entry) for entry in entries] for name, entries in topics.items()
            }
            for device, topics in json.loads(path.read_text()).items()
        }
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


def _entry(size: int, backend: str) -> tuple[int, str]:
    if not isinstance(size, int) or size < 1 or not isinstance(backend, str):
        raise ValueError(f'{[size, backend]} is not a size and a backend')
    return size, backend


def device_name(device: torch.device) -> str:
    """Return the name of the card, or of the processor with its instruction set."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    # The first core represents all. Virtual machines give quite different processors one name.
    facts = dict(reversed([[part.strip() for part in x.split(':', 1)] for x in lines if ':' in x]))
    name = facts.get('model name') or platform.processor() or platform.machine()
    if 'cpu family' in facts:
        name += f' (family {facts["cpu family"]}, model {facts["model"]})'
    return f'{name}, {torch.backends.cpu.get_cpu_capability()}'
