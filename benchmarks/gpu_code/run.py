"""Compiles the kernels of all calls, stores what they are made of, and prints it."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.gpu_code.calls import GpuCall, all_calls
from benchmarks.gpu_code.cards import CARDS, WARP
from benchmarks.gpu_code.launch import Launch
from benchmarks.gpu_code.report import STORED
from benchmarks.gpu_code.triton_launches import launches

logger = logging.getLogger('benchmarks')


def kernels_of(call: GpuCall, backend: str, capability: int) -> list[dict[str, Any]]:
    """What is known about each kernel that a call launches, in the order of launches."""
    return [
        {
            'backend': backend,
            'case': call.case.name,
            'part': call.part,
            'dtype': call.dtype,
            'layout': call.layout,
            'capability': capability,
            **describe(launch, call, capability),
        }
        for launch in launches(lambda: call.run(backend), capability)
    ]


def describe(launch: Launch, call: GpuCall, capability: int) -> dict[str, Any]:
    """Resources, instructions and the estimate of one launch, as plain data."""
    code, card = launch.code, CARDS[capability]
    opcodes = code.opcodes()
    resident = card.resident_blocks(launch.threads, code.registers, launch.shared)
    warps = launch.blocks * launch.threads // WARP
    slots = resident * card.multiprocessors
    facts: dict[str, Any] = {
        'kernel': code.name,
        'blocks': launch.blocks,
        'threads': launch.threads,
        'registers': code.registers,
        'local_bytes': code.stack,
        'local_stores': opcodes['STL'],
        'local_loads': opcodes['LDL'],
        'shared_bytes': launch.shared,
        'resident_blocks': resident,
        'occupancy': resident * launch.threads / (card.warps * WARP),
        'waves': launch.blocks / slots if slots else None,
        'barriers': opcodes['BAR'],
        'matrix_instructions': dict(sorted(code.matrix_instructions().items())),
        'load_bits': {str(bits): n for bits, n in sorted(code.load_widths().items())},
        'instructions': sum(opcodes.values()),
        'floor_us': card.transfer_seconds(call.floor_bytes) * 1e6,
    }
    if launch.iterations is not None:
        executed = warps * code.executed(launch.iterations)
        inner = warps * code.in_innermost_loops(launch.iterations)
        facts['iterations'] = list(launch.iterations.values())
        facts['warp_instructions'] = executed
        facts['instructions_per_tap'] = executed * WARP / call.taps
        facts['inner_instructions_per_tap'] = inner * WARP / call.taps
        facts['issue_us'] = card.issue_seconds(executed) * 1e6
    return facts


def run(capabilities: Iterable[int], backends: Iterable[str], pattern: str) -> list[dict[str, Any]]:
    """Compile the kernels of the calls whose names match a pattern."""
    calls = [call for call in all_calls() if re.search(pattern, call.name)]
    found = []
    for capability, backend in itertools.product(capabilities, backends):
        for call in calls:
            logger.info('sm_%d, %s: %s', capability, backend, call.name)
            found += kernels_of(call, backend, capability)
    return found


def store(kernels: list[dict[str, Any]], path: Path = STORED) -> None:
    """Write what :func:`run` has found, with the versions of the compilers."""
    content = {
        'date': datetime.date.today().isoformat(),
        'versions': {'torch': torch.__version__, 'triton': triton.__version__},
        'kernels': [],
    }
    # A line for each kernel.
    lines = ',\n'.join(map(json.dumps, kernels))
    text = json.dumps(content).removesuffix(']}') + f'\n{lines}\n]}}\n'
    path.write_text(text, encoding='utf-8')
