"""Writes docs/benchmarks.md from the stored results."""

import json
from pathlib import Path

from benchmarks.stored import RESULTS

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'benchmarks.md'

HEAD = """\
# Speed and memory of the operators

<!-- Written by `python -m benchmarks report` from benchmarks/results. Do not edit. -->

`make bench` measures the CPU, `make bench-gpu` a GPU; both rewrite this page. A case is one
call as the network makes it. What gives an output or gradients that differ from the reference is
not timed; products of float32 numbers are not rounded to TF32.

`make bench-gpu TIER=3` (or 8, or 30) takes about so many minutes; `python -m benchmarks run --help`
lists what each tier holds. Started again, it measures what is missing, unless the code or a version
has changed. `python -m benchmarks run --device cuda` needs only torch.

On a CPU all times of a case are taken in one run of one process. On a GPU a time is that of a
replayed CUDA graph, with flushed caches; where a call cannot be captured (marked *e*), that between
two events around it. *Launch* is how long Python takes to launch the call, which the card's work
can hide or not.

- *ours* is the first of our backends in the order of automatic choice: median and, in
  parentheses, the distance of the quartiles. The other columns give how many times longer the
  others take.
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
  *train* is the bare convolution with its gradients, on a GPU, beside that of the library.
- On a GPU ContMix gets maps in channels_last memory, except where *NCHW* is stated. *Without cuDNN*
  the library uses the depthwise kernels of PyTorch.
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
        (f'{rate / 1e12:.0f} TFLOP/s' if rate > 1e13 else f'{rate / 1e9:.0f} GFLOP/s')
        + f' in {dtype}'
        for dtype, rate in machine['matmul_flops_per_s'].items()
    )
    sections = [
        f'### {machine["device"]}\n',
        f'{machine["date"]}; {machine["threads"]} threads; {versions}. Measured copy bandwidth '
        f'{machine["copy_bytes_per_s"] / 1e9:.1f} GB/s, matrix products {rates}.\n',
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in content['results']:
        if any('forward' in cell for cell in result['implementations'].values()):
            groups.setdefault((result['case']['op'], result['dtype']), []).append(result)
    for (op, dtype), group in groups.items():
        for part, title in PARTS.items():
            if part not in group[0]:
                continue
            sections += [f'#### {op}, {dtype}: {title.lower()}\n', _table(group, part)]
    if content['refused']:
        sections.append('Not reported, because the result was not that of the reference:\n')
        sections += [f'- {line}' for line in content['refused']] + ['']
    return sections + _not_measured(content['results'])


def _not_measured(results: list[dict]) -> list[str]:
    """A line for each reason, with how many cases it kept from being measured."""
    reasons: dict[tuple[str, str], int] = {}
    for result in results:
        for name, cell in result['implementations'].items():
            if 'not_measured' in cell and name not in result['ours']:
                key = (name, cell['not_measured'])
                reasons[key] = reasons.get(key, 0) + 1
    if not reasons:
        return []
    lines = [
        f'- {name}, {count} case{"s" if count > 1 else ""}: {code(why)}'
        for (name, why), count in reasons.items()
    ]
    return ['Not measured:\n', *lines, '']


def code(text: str) -> str:
    """A message as Markdown code."""
    return '`' + text.replace('`', "'") + '`'


def _table(group: list[dict], part: str) -> str:
    first = next((name for result in group for name in _timed(result, part)), '')
    names = (name for r in group for name in r['implementations'] if name != first)
    others = list(dict.fromkeys(names))
    with_memory = part == 'forward_backward'
    with_launch = any('launch_ms' in r['implementations'][_base(r, part)][part] for r in group)
    head = ['origin', 'B', 'G', 'C', 'map', 'K', 'backend', 'ours (ms)', *others]
    head += ['launch (ms)'] if with_launch else []
    head += ['bandwidth', 'matrix rate']
    with_peak = [
        name
        for name in others
        if any('peak_extra_bytes' in r['implementations'].get(name, {}) for r in group)
    ]
    if with_memory:
        head += ['memory (MiB)', *(f'memory, {name}' for name in with_peak)]
    lines = [head, ['---'] * len(head)]
    for result in group:
        case, implementations = result['case'], result['implementations']
        backend = _base(result, part)
        ours = implementations[backend]
        measured = ours[part]
        line = [case['origin'], case['batch'], case.get('groups', ''), case['channels']]
        line += [f'{case["height"]} x {case["width"]}', case['kernel_size'], backend]
        line.append(_milliseconds(measured))
        line += [_times(implementations.get(name), part) for name in others]
        if with_launch:
            line.append(plain(measured['launch_ms'], 2))
        line.append(f'{measured["fraction_of_copy_bandwidth"]:.1%}')
        line.append(f'{measured["fraction_of_matmul_rate"]:.1%}')
        if with_memory:
            line.append(_mebibytes(ours))
            line += [_ratio(implementations.get(name), ours) for name in with_peak]
        lines.append(line)
    return '\n'.join('| ' + ' | '.join(str(x) for x in line) + ' |' for line in lines) + '\n'


def _timed(result: dict, part: str) -> list[str]:
    """Names of what was timed, our backends first."""
    names = (*result['ours'], *result['implementations'])
    timed = (name for name in names if part in result['implementations'].get(name, {}))
    return list(dict.fromkeys(timed))


def _base(result: dict, part: str) -> str:
    """The implementation to which the others are compared."""
    return _timed(result, part)[0]


def _milliseconds(measured: dict) -> str:
    mark = ' *e*' if measured.get('captured') is False else ''
    return f'{plain(measured["median_ms"], 3)} ({plain(measured["spread_ms"], 2)}){mark}'


def _times(implementation: dict | None, part: str) -> str:
    if implementation is None or part not in implementation:
        return 'not measured'
    measured = implementation[part]
    mark = ' *e*' if measured.get('captured') is False else ''
    return f'x {measured.get("times_ours", 1):.3g}{mark}'


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
