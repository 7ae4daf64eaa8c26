"""Writes docs/gpu_kernels.md from the stored description of the kernels."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.gpu_code.cards import CARDS
from benchmarks.stored import RESULTS

STORED = RESULTS / 'kernels-gpu.json'
PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'gpu_kernels.md'

HEAD = """\
# GPU kernels as compiled

<!-- Written by `python -m benchmarks gpu-code` from benchmarks/results. Do not edit. -->

`make gpu-report` compiles the GPU kernels for four architectures, disassembles them and rewrites
this page. It needs no GPU: **nothing on this page is measured**. It shows what a kernel asks of a
card, and a time that it cannot beat; a real time is longer.

- *local* is local memory of a thread in bytes, where registers are spilled to, with the
  instructions that write and read it.
- *shared* is shared memory of a block in KiB, *blocks* the blocks of the launch, and *resident* the
  blocks that a multiprocessor holds at a time, with the fraction of its warps that they fill. It
  follows from registers, shared memory and threads. *Waves* is how often the card is filled.
- *matrix* counts instructions of the matrix units in the code; *loads* those from global memory by
  the bits that a thread loads (128 / 64 / 32 / 16); *barriers* those of a block.
- *per tap* is the number of instructions of a thread for each tap of the call (for ContMix, taps of
  a token, whatever its channels; for depthwise operators, taps of each output), and in parentheses
  those of them in innermost loops.
- *issue* is the estimate: the time in which the card issues all instructions of the launch, four
  per multiprocessor and cycle, as if nothing ever waited. Iterations of loops come from the
  compiler's own code; each branch is counted as taken the longer way. *floor* is the time in which
  the memory of the card moves the bytes that any implementation must move: each input read once,
  each result written once. Small operations of PyTorch around the kernels are in neither.
- "not derived" stands where the compiler has rearranged the loops so that their iterations are not
  known.
"""


def write(stored: Path = STORED, page: Path = PAGE) -> Path:
    """Write the page; its path."""
    content = json.loads(stored.read_text(encoding='utf-8'))
    versions = ', '.join(f'{name} {version}' for name, version in content['versions'].items())
    sections = [HEAD, f'{content["date"]}; {versions}.\n']
    for capability in sorted({kernel['capability'] for kernel in content['kernels']}):
        of_card = [k for k in content['kernels'] if k['capability'] == capability]
        sections.append(tables(of_card))
    page.write_text('\n'.join(sections), encoding='utf-8')
    return page


def tables(kernels: list[dict[str, Any]]) -> str:
    """A table of kernels for each architecture, backend, shape, dtype and layout."""
    sections = []
    keys = ('capability', 'backend', 'case', 'dtype', 'layout')
    previous: tuple[Any, ...] = ()
    for key, group in groupby(kernels, lambda kernel: tuple(kernel[k] for k in keys)):
        capability, backend, case, dtype, layout = key
        if previous[:1] != key[:1]:
            card = CARDS[capability]
            sections.append(
                f'## sm_{capability}: {card.name}\n\nPublished: {card.multiprocessors} '
                f'multiprocessors, {card.clock / 1e9:.3g} GHz, {card.bandwidth / 1e12:.3g} TB/s.\n'
            )
        sections += [f'### sm_{capability}, {backend}: {case}, {dtype}, {layout}\n']
        sections.append(_table(list(group)))
        previous = key
    return '\n'.join(sections)


def _table(kernels: list[dict[str, Any]]) -> str:
    head = ['kernel', 'registers', 'local', 'shared', 'blocks', 'resident', 'waves', 'matrix']
    head += ['loads', 'barriers', 'per tap', 'issue (µs)', 'floor (µs)']
    lines = [head, ['---'] + ['--:'] * (len(head) - 1)]
    for part, group in groupby(kernels, lambda kernel: kernel['part']):
        of_part = list(group)
        lines += map(_row, of_part)
        total = _sum(kernel.get('issue_us') for kernel in of_part)
        lines.append([f'*{part}*', *[''] * 10, total, f'{of_part[0]["floor_us"]:.3g}'])
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def _row(kernel: dict[str, Any]) -> list[str]:
    loads = kernel['load_bits']
    widths = [loads.get('128', 0) + loads.get('256', 0), *(loads.get(w, 0) for w in ('64', '32'))]
    widths.append(loads.get('16', 0) + loads.get('8', 0))
    local = f'{kernel["local_bytes"]} ({kernel["local_stores"]} + {kernel["local_loads"]})'
    matrix = ', '.join(f'{n} {name}' for name, n in kernel['matrix_instructions'].items())
    taps = 'not derived'
    if 'instructions_per_tap' in kernel:
        inner = kernel['inner_instructions_per_tap']
        taps = f'{kernel["instructions_per_tap"]:.3g} ({inner:.3g})'
    return [
        kernel['kernel'],
        str(kernel['registers']),
        local if kernel['local_bytes'] or kernel['local_stores'] else '0',
        f'{kernel["shared_bytes"] / 1024:.3g}',
        str(kernel['blocks']),
        f'{kernel["resident_blocks"]} ({kernel["occupancy"]:.0%})',
        f'{kernel["waves"]:.2f}',
        matrix or '0',
        ' / '.join(map(str, widths)),
        str(kernel['barriers']),
        taps,
        _sum([kernel.get('issue_us')]),
        '',
    ]


def _sum(times: Any) -> str:
    times = list(times)
    return 'not derived' if None in times else f'{sum(times):.3g}'
