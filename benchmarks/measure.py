"""Time, memory, and what the machine can do at most."""

import ctypes
import platform
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import overlock_mm
from overlock_mm.ops.preferences import device_name
from overlock_mm.utils.timing import time_runs


def time_of(
    function: Callable[[], object],
    device: torch.device,
    budget: float,
    most_runs: int = 50,
    capture: bool = True,
) -> dict[str, Any]:
    """Median and spread of a call's time.

    Args:
        function: The call.
        device: Where it runs.
        budget: Seconds to spend; one run for warming up and three that count are made
            whatever they take.
        most_runs: Number of runs at which to stop before the budget is spent.
        capture: On a GPU: time the replay of a captured graph where that is possible.

    Returns:
        ``median_ms``, ``spread_ms`` (distance of the quartiles) and ``runs``; on a GPU also
        ``launch_ms`` (see :class:`overlock_mm.utils.timing.Times`), ``captured``, and
        ``not_captured`` where there is a reason.
    """
    times = time_runs(function, device, (3, most_runs), budget, capture)
    low, median, high = statistics.quantiles(times.seconds, n=4, method='inclusive')
    result: dict[str, Any] = {
        'median_ms': median * 1e3,
        'spread_ms': (high - low) * 1e3,
        'runs': len(times.seconds),
    }
    if times.launch is not None:
        result |= {'launch_ms': times.launch * 1e3, 'captured': times.captured}
    return result | ({'not_captured': times.not_captured} if times.not_captured else {})


def return_freed_memory() -> None:
    """Let the C library give every freed block of 64 KiB or more back to the system.

    It keeps them otherwise, and the resident size says nothing about a call. Slows
    allocation down: to be called after the last time has been taken.
    """
    if platform.system() == 'Linux':
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 64 * 1024)


def peak_extra_memory(function: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of a call beyond those held before it; None if they cannot be determined."""
    if device.type == 'cuda':
        function()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if platform.system() != 'Linux':
        return None
    function()
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = _status_bytes('VmRSS')
    function()
    return _status_bytes('VmHWM') - before


def _status_bytes(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no field {field}.')


def machine(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Date, names, versions, copy bandwidth (read and written bytes) and matrix rates."""
    return {**identity(device), **rates(device, dtypes)}


def identity(device: torch.device) -> dict[str, Any]:
    """Date, name of the device, threads and versions."""
    versions = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'overlock_mm': overlock_mm.__version__,
    }
    for name in ('triton', 'natten', 'onnxruntime', 'openvino'):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = 'not installed'
    return {
        'date': date.today().isoformat(),
        'device': device_name(device),
        'threads': torch.get_num_threads(),
        'versions': versions,
    }


def rates(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Copy bandwidth (read and written bytes) and, for each dtype, that of matrix products."""
    side, megabytes = (8192, 1024) if device.type == 'cuda' else (1536, 128)
    source = torch.randn(megabytes << 18, device=device)
    target = torch.empty_like(source)
    copy = time_of(lambda: target.copy_(source), device, budget=1)
    rates = {}
    for dtype in dtypes:
        # Random numbers: ones switch few bits, and a card that draws less power runs faster.
        a: Tensor = torch.randn(side, side, device=device, dtype=dtype)
        product = time_of(lambda a=a: a @ a, device, budget=1)
        rates[str(dtype).removeprefix('torch.')] = 2 * side**3 / product['median_ms'] * 1e3
    return {
        'copy_bytes_per_s': 2 * source.numel() * 4 / copy['median_ms'] * 1e3,
        'matmul_flops_per_s': rates,
    }
