"""Writes docs/gpu_kernels.md from the stored description of the kernels."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.gpu_code.cards import CARDS
from benchmarks.report import plain
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
  the bits that a thread loads (128 and more / 64 / 32 / 16 and fewer); *barriers* those of a block.
- *per tap* is the number of instructions of a thread for each tap of the call (for ContMix, taps of
  a token, whatever its channels; for depthwise operators, taps of each output), and in parentheses
  those of them in innermost loops.
- *issue* is the estimate: the time in which the card issues all instructions of the launch, four
  per multiprocessor and cycle, as if nothing ever waited, all of the card were busy, and an
  instruction of the matrix units took one cycle (it takes several). How often loops run follows
  from the control flow, which is executed for a sample of the threads with the arguments of the
  launch. *Floor* is the time in which the memory of the card moves the bytes that any
  implementation must move: each input read once, each result written once. Operations of PyTorch
  itself around the kernels are in neither.
- "not derived" stands where the iterations of a loop are not known: what is in memory decides, or
  the compiler has made another loop of it.

All calls and dtypes are in `benchmarks/results/kernels-gpu.json`. After a change of a kernel,
`python -m benchmarks gpu-code --print --architectures 90 --calls REGEX` prints its tables in
seconds.
"""


def write(stored: Path = STORED, page: Path = PAGE) -> Path:
    """Write the page; its path."""
    content = json.loads(stored.read_text(encoding='utf-8'))
    kernels = content['kernels']
    versions = ', '.join(f'{name} {version}' for name, version in content['versions'].items())
    cards = [
        f'- sm_{capability}: {card.name}, {card.multiprocessors} multiprocessors, '
        f'{card.clock / 1e9:.4g} GHz, {card.bandwidth / 1e12:.4g} TB/s'
        for capability, card in CARDS.items()
    ]
    sections = [
        HEAD,
        f'Compiled on {content["date"]} by {versions}.\n',
        '## Estimates\n',
        'In µs, with the multiple of the floor in parentheses. Published figures of the cards:\n',
        '\n'.join(cards) + '\n',
        summary(kernels),
        '## Kernels in bfloat16\n',
        tables([kernel for kernel in kernels if kernel['dtype'] == 'bfloat16']),
    ]
    page.write_text('\n'.join(sections), encoding='utf-8')
    return page


def summary(kernels: list[dict[str, Any]]) -> str:
    """For each shape, the estimates of all calls on all cards."""
    by_call: dict[tuple[str, ...], dict[int, list[dict[str, Any]]]] = {}
    for kernel in kernels:
        call = tuple(kernel[key] for key in ('case', 'dtype', 'layout', 'backend', 'part'))
        by_call.setdefault(call, {}).setdefault(kernel['capability'], []).append(kernel)
    capabilities = sorted({kernel['capability'] for kernel in kernels})
    sections = []
    for case in dict.fromkeys(call[0] for call in by_call):
        lines = [['dtype', 'layout', 'backend', 'part', *(CARDS[c].name for c in capabilities)]]
        lines.append(['---'] * 4 + ['--:'] * len(capabilities))
        for call in (call for call in by_call if call[0] == case):
            lines.append([*call[1:], *(_estimate(by_call[call].get(c, [])) for c in capabilities)])
        sections += [f'### {case}\n', _markdown(lines)]
    return '\n'.join(sections)


def tables(kernels: list[dict[str, Any]]) -> str:
    """A table of kernels for each architecture, backend, shape, dtype and layout."""
    sections = []
    keys = ('capability', 'backend', 'case', 'dtype', 'layout')
    for key, group in groupby(kernels, lambda kernel: tuple(kernel[k] for k in keys)):
        capability, backend, case, dtype, layout = key
        title = f'sm_{capability} ({CARDS[capability].name}), {backend}: {case}, {dtype}, {layout}'
        sections += [f'### {title}\n', _table(list(group))]
    return '\n'.join(sections)


def _estimate(kernels: list[dict[str, Any]]) -> str:
    """The time of all kernels of a call, and how many times its floor that is."""
    times = [kernel.get('issue_us') for kernel in kernels]
    if not times:
        return ''
    if None in times:
        return 'not derived'
    return f'{plain(sum(times), 3)} (x {plain(sum(times) / kernels[0]["floor_us"], 2)})'


def _markdown(lines: list[list[str]]) -> str:
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def _table(kernels: list[dict[str, Any]]) -> str:
    head = ['kernel', 'registers', 'local', 'shared', 'blocks', 'resident', 'waves', 'matrix']
    head += ['loads', 'barriers', 'per tap', 'issue (µs)', 'floor (µs)']
    lines = [head, ['---'] + ['--:'] * (len(head) - 1)]
    for part, group in groupby(kernels, lambda kernel: kernel['part']):
        of_part = list(group)
        lines += map(_row, of_part)
        floor = plain(of_part[0]['floor_us'], 3)
        lines.append([f'*{part}*', *[''] * 10, _estimate(of_part), floor])
    return _markdown(lines)


def _row(kernel: dict[str, Any]) -> list[str]:
    loads = kernel['load_bits']
    widths = [loads.get('128', 0) + loads.get('256', 0), *(loads.get(w, 0) for w in ('64', '32'))]
    widths.append(loads.get('16', 0) + loads.get('8', 0))
    local = f'{kernel["local_bytes"]} ({kernel["local_stores"]} + {kernel["local_loads"]})'
    matrix = ', '.join(f'{n} {name}' for name, n in kernel['matrix_instructions'].items())
    taps = 'not derived'
    if 'instructions_per_tap' in kernel:
        inner = kernel['inner_instructions_per_tap']
        taps = f'{plain(kernel["instructions_per_tap"], 3)} ({plain(inner, 3)})'
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
        plain(kernel['issue_us'], 3) if 'issue_us' in kernel else 'not derived',
        '',
    ]
