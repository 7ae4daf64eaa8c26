"""Compiles the kernels of all calls, stores what they are made of, and prints it."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import json
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_code import cuda_launches
from benchmarks.gpu_code.calls import GpuCall, all_calls
from benchmarks.gpu_code.cards import CARDS, WARP
from benchmarks.gpu_code.launch import Launch
from benchmarks.gpu_code.report import STORED

logger = logging.getLogger('benchmarks')


def calls_that_match(pattern: str) -> list[GpuCall]:
    """The calls of the report whose names match a regular expression."""
    return [call for call in all_calls() if re.search(pattern, call.name)]


def kernels_of(
    call: GpuCall,
    backend: str,
    capability: int,
    launches: Callable[[Callable[[], None]], list[Launch]],
) -> list[dict[str, Any]]:
    """What is known about each kernel that a call launches, in the order of launches.

    Args:
        call: The call.
        backend: The backend that runs it.
        capability: The compute capability of the card.
        launches: Runs a function and returns its launches.
    """
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
        for launch in launches(lambda: call.run(backend))
    ]


def short_name(symbol: str) -> str:
    """The name of a kernel with its integral template arguments, for example forward_kernel<16>."""
    match = re.search(r'\d([a-z][a-z_]*)I((?:Li\d+E)*)', symbol)
    if not match:
        return symbol
    sizes = re.findall(r'\d+', match[2])
    return f'{match[1]}<{", ".join(sizes)}>' if sizes else match[1]


def describe(launch: Launch, call: GpuCall, capability: int) -> dict[str, Any]:
    """Resources, instructions and the estimate of one launch, as plain data."""
    code, card = launch.code, CARDS[capability]
    opcodes = code.opcodes()
    resident = card.resident_blocks(launch.threads, code.registers, launch.shared)
    warps = launch.blocks * launch.threads // WARP
    slots = resident * card.multiprocessors
    facts: dict[str, Any] = {
        'kernel': short_name(code.name),
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


def default_backends() -> list[str]:
    """All, but the CUDA kernels only where there is a compiler for them."""
    return ['triton', *(['cuda'] if cuda_launches.find_nvcc() else [])]


def run(capabilities: list[int], backends: list[str], pattern: str) -> list[dict[str, Any]]:
    """Compile the kernels of the calls whose names match a regular expression.

    Args:
        capabilities: Architectures, 90 for sm_90.
        backends: 'triton' and 'cuda', which needs nvcc.
        pattern: The regular expression.
    """
    found = []
    if 'triton' in backends:
        from benchmarks.gpu_code.triton_launches import launches  # imports Triton

        for capability, call in itertools.product(capabilities, calls_that_match(pattern)):
            logger.info('sm_%d, triton: %s', capability, call.name)
            found += kernels_of(call, 'triton', capability, partial(launches, capability))
    if 'cuda' in backends:
        logger.info('Compiling the extension')
        library = cuda_launches.build(capabilities)
        for capability in capabilities:
            logger.info('sm_%d, cuda', capability)
            found += cuda_launches.kernels(library, capability, pattern)
    return sorted(found, key=lambda kernel: kernel['capability'])


def store(kernels: list[dict[str, Any]], path: Path = STORED) -> None:
    """Write what :func:`run` has found, with the versions of the compilers."""
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'triton')}
    if any(kernel['backend'] == 'cuda' for kernel in kernels):
        versions['nvcc'] = cuda_launches.nvcc_release()
    content = {'date': datetime.date.today().isoformat(), 'versions': versions, 'kernels': []}
    # A line for each kernel.
    lines = ',\n'.join(map(json.dumps, kernels))
    text = json.dumps(content).removesuffix(']}') + f'\n{lines}\n]}}\n'
    path.write_text(text, encoding='utf-8')
