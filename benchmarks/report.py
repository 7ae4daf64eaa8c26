"""Writes docs/benchmarks.md from the stored results."""

import json
from pathlib import Path

from benchmarks.run import RESULTS

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'benchmarks.md'

HEAD = """\
# Speed and memory of the operators

<!-- Written by `python -m benchmarks report` from benchmarks/results. Do not edit. -->

`make bench` measures the CPU, `make bench-gpu` a GPU; both rewrite this page. A case is one
call as the network makes it; all times of a case are taken in one run of one process, and
a case whose output or gradients differ from the reference is not reported.

- *ours* is the backend that is chosen without being asked: median and, in parentheses, the
  distance of the quartiles. The columns of the baselines give how many times longer they take.
- *chain* is the definition in plain PyTorch: affinity, projection, bias, softmax, aggregation
  as a loop over the taps or from unfolded windows.
- *bandwidth* is the fraction of the measured copy bandwidth at which the floor of bytes (every
  input read and every result written once) is moved; *matrix rate* the fraction of the
  measured rate of matrix products at which the definition's multiply-adds are made. The CPU
  backend folds affinity and projection into one smaller product, so its figure may exceed
  what its arithmetic units do.
- *memory* is the peak of forward and backward beyond the inputs.
- *depthwise* cases are those of the deployed network, forward only, maps in channels_last
  memory: LayerNorm of the result (*norm*), its mean (*mean*), GELU before and the L2 norm
  of the result (*mlp*). Their *chain* is one library function after the other, also on NCHW maps.
"""
PARTS = {'forward': 'Forward', 'forward_backward': 'Forward and backward'}


def write(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the page; its path."""
    sections = [HEAD]
    for kind, title in (('cpu', 'CPU'), ('gpu', 'GPU')):
        sections.append(f'## {title}\n')
        files = sorted(results.glob(f'{kind}-*.json'))
        if not files:
            sections.append('not measured\n')
        for path in files:
            sections += _device(json.loads(path.read_text(encoding='utf-8')))
    page.parent.mkdir(exist_ok=True)
    page.write_text('\n'.join(sections), encoding='utf-8')
    return page


def _device(content: dict) -> list[str]:
    machine = content['machine']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    rates = ', '.join(
        f'{rate / 1e9:.0f} GFLOP/s in {dtype}'
        for dtype, rate in machine['matmul_flops_per_s'].items()
    )
    sections = [
        f'### {machine["device"]}\n',
        f'{machine["date"]}; {machine["threads"]} threads; {versions}. Measured copy bandwidth '
        f'{machine["copy_bytes_per_s"] / 1e9:.1f} GB/s, matrix products {rates}.\n',
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in content['results']:
        groups.setdefault((result['case']['op'], result['dtype']), []).append(result)
    for (op, dtype), group in groups.items():
        for part, title in PARTS.items():
            if part not in group[0]:
                continue
            sections += [f'#### {op}, {dtype}: {title.lower()}\n', _table(group, part)]
    if content['refused']:
        sections.append('Not reported, because the result was not that of the reference:\n')
        sections += [f'- {line}' for line in content['refused']] + ['']
    return sections


def _table(group: list[dict], part: str) -> str:
    measured = (name for r in group for name in r['implementations'] if name not in r['ours'])
    baselines = list(dict.fromkeys(measured))
    with_memory = part == 'forward_backward'
    head = ['origin', 'B', 'G', 'C', 'map', 'K', 'backend', 'ours (ms)', *baselines]
    head += ['bandwidth', 'matrix rate']
    if with_memory:
        head += [
            'memory (MiB)',
            *(f'memory, {name}' for name in baselines if 'compiled' not in name),
        ]
    lines = [head, ['---'] * len(head)]
    for result in group:
        case, implementations = result['case'], result['implementations']
        backend = result['ours'][0] if result['ours'] else baselines[0]
        ours = implementations[backend]
        measured = ours[part]
        line = [case['origin'], case['batch'], case.get('groups', ''), case['channels']]
        line += [f'{case["height"]} x {case["width"]}', case['kernel_size'], backend]
        line.append(f'{plain(measured["median_ms"], 3)} ({plain(measured["spread_ms"], 2)})')
        line += [_times(implementations.get(name), part) for name in baselines]
        line.append(f'{measured["fraction_of_copy_bandwidth"]:.1%}')
        line.append(f'{measured["fraction_of_matmul_rate"]:.1%}')
        if with_memory:
            line.append(_mebibytes(ours))
            line += [_ratio(implementations.get(n), ours) for n in baselines if 'compiled' not in n]
        lines.append(line)
    return '\n'.join('| ' + ' | '.join(str(x) for x in line) + ' |' for line in lines) + '\n'


def _times(implementation: dict | None, part: str) -> str:
    if implementation is None or part not in implementation:
        return 'not measured'
    return f'x {implementation[part].get("times_ours", 1):.3g}'


def _mebibytes(implementation: dict) -> str:
    peak = implementation.get('peak_extra_bytes')
    return 'not measured' if peak is None else f'{peak / 2**20:.3g}'


def _ratio(implementation: dict | None, ours: dict) -> str:
    peak = (implementation or {}).get('peak_extra_bytes')
    own = ours.get('peak_extra_bytes')
    return 'not measured' if peak is None or not own else f'x {peak / own:.3g}'


def plain(number: float, digits: int) -> str:
    """Rounded to significant digits, without the exponent that they bring."""
    return f'{float(f"{number:.{digits}g}"):.10g}'
