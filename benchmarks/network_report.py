"""Writes docs/networks.md and its pictures from the stored results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.network_pictures import draw_accuracy, draw_resolution
from benchmarks.network_results import (
    fastest,
    forms_for_inference,
    precisions,
    runtimes,
    setting,
    version,
)
from benchmarks.report import code, plain
from benchmarks.runtimes import RUNTIMES
from benchmarks.stored import RESULTS

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'networks.md'

NOT_MEASURED = 'not measured'
HEAD = """\
# Speed and memory of whole networks

<!-- Written by `python -m benchmarks report` from benchmarks/results. Do not edit. -->

`make bench-networks` measures the CPU, `make bench-gpu` or `python -m benchmarks networks --device
cuda` a GPU; all rewrite this page. `--cases`, `--networks` and, on a CPU, `--runtimes` choose. What
was measured with the same code and versions adds up, and a run that was stopped resumes, on a CPU
case by case.

- The networks are backbones with four outputs, as dense prediction uses them, with random
  weights; the baselines are those of mmpretrain. OverLoCK is measured in training form and in fused
  form, RepLKNet in training form and in reparameterized form.
- On a CPU every network runs in each runtime that a user can pick without changing it: PyTorch's
  eager mode, with its own matrix products and with those of oneDNN (`F.linear` replaced;
  OverLoCK's fused form always has them in float32), `torch.compile` with constant weights, ONNX
  Runtime and OpenVINO. In bfloat16 the weights and images are bfloat16; OpenVINO converts them.
  A network is compared in the runtime in which it is fastest. A runtime that is not installed
  (`pip install onnxruntime openvino`), or cannot run a network, is left out.
- *Time of the processor* (`--clock cpu`) is that of one thread. It suits a machine that does other
  work meanwhile, although that work still takes a share of the caches.
- Within a case on a CPU all of them run in turns, one call each per round, so that whatever else
  happens on the machine hits all alike. Given are the median and, in parentheses, the distance of
  the quartiles.
- On a GPU inference has bfloat16 weights and images (Swin, whose mask is float32, autocast), and
  training autocast to bfloat16. Caches are flushed before each run. *Eager* and *torch.compile* are
  called from Python, and the card waits while Python launches; *CUDA graph* is the replay of a
  graph that was captured from that call. *Launch* is how long Python takes to launch the call.
  OverLoCK trains with each setting of `recompute` ([memory of training](training_memory.md)), the
  baselines with and without `with_cp`.
- In PyTorch each network runs in the memory layout, NCHW or channels_last, in which it is faster.
- *Memory* is the peak of a call beyond weights and images, on a CPU in eager mode.
- *Training* is forward and backward, on a CPU with a step of AdamW.
- Top-1 is the published accuracy on ImageNet-1K at 224 x 224, not measured here.
"""
#: (ours, baseline): the ratios that the project watches.
RATIOS = (
    ('OverLoCK-T, fused form', 'ConvNeXt-B'),
    ('OverLoCK-XT, fused form', 'ConvNeXt-T'),
)


def write(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the page and the pictures beside it; the page's path."""
    page.parent.mkdir(exist_ok=True)
    sections = [HEAD]
    for kind, title in (('cpu', 'CPU'), ('gpu', 'GPU')):
        sections.append(f'## {title}\n')
        files = sorted(results.glob(f'networks-{kind}-*.json'))
        if not files:
            sections.append('not measured\n')
        for path in files:
            content = json.loads(path.read_text(encoding='utf-8'))
            sections += _device(content, kind)
            for draw, what in ((draw_accuracy, 'accuracy'), (draw_resolution, 'resolution')):
                picture = page.with_name(f'{path.stem}-{what}.svg')
                title = draw(content, picture)
                if title:
                    sections.append(f'![{title}]({picture.name})\n')
    page.write_text('\n'.join(sections), encoding='utf-8')
    return page


def _device(content: dict[str, Any], kind: str) -> list[str]:
    machine, results = content['machine'], content['results']
    versions = ', '.join(f'{name} {version(machine, name)}' for name in machine['versions'])
    inference, training = (
        [r for r in results if r['case']['mode'] == mode] for mode in ('inference', 'training')
    )
    return [
        f'### {machine["device"]}\n',
        f'{machine["date"]}; {setting(machine)}; {versions}.\n',
        *(_missing(inference) if kind == 'cpu' else ()),
        *_section('Time over that of a baseline, fastest runtime over fastest', _ratios(inference)),
        *_section('The fastest runtime, milliseconds per batch', _fastest(content, inference)),
        *_section('All runtimes, milliseconds per batch', _all(inference)),
        *_section('Training, milliseconds per batch', _all(training)),
        *_section('Launch in milliseconds', _cells(results, 'launch_ms', 1, 2)),
        *_section('Memory in MiB', _cells(results, 'peak_extra_bytes', 2**20, 0)),
        *_reasons(results),
    ]


def _missing(results: list[dict[str, Any]]) -> list[str]:
    """A sentence about runtimes that were left out, where several were measured."""
    found = runtimes(results)
    missing = [runtime.name for runtime in RUNTIMES if runtime.name not in found]
    return [f'Not measured: {", ".join(missing)}.\n'] if missing and len(found) > 1 else []


def _section(title: str, rows: list[list[str]]) -> list[str]:
    """A table, or nothing where it would be empty."""
    if len(rows) < 2:
        return []
    rows.insert(1, ['---'] * len(rows[0]))
    lines = ('| ' + ' | '.join(row) + ' |' for row in rows)
    return [f'#### {title}\n', '\n'.join(lines) + '\n']


def _titles(results: list[dict[str, Any]]) -> list[str]:
    cases = (r['case'] for r in results)
    return [f'{case["height"]} x {case["width"]}, batch {case["batch"]}' for case in cases]


def _ratios(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [['time of', 'over that of', 'precision', *_titles(results)]]
    for precision in precisions(results):
        for pair in RATIOS:
            row = [*pair, precision]
            for result in results:
                ours, baseline = (fastest(result, name, precision) for name in pair)
                known = ours is not None and baseline is not None
                row.append(f'{ours["median_ms"] / baseline["median_ms"]:.2f}' if known else '-')
            if set(row[3:]) != {'-'}:
                rows.append(row)
    return rows


def _fastest(content: dict[str, Any], results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [['network', 'top-1', 'parameters (M)', 'precision', *_titles(results)]]
    for precision in precisions(results):
        for name in dict.fromkeys(n for r in results for n in forms_for_inference(r)):
            entries = (entry for r in results for entry in r['candidates'].values())
            if (name, precision) not in {(entry['of'], entry['precision']) for entry in entries}:
                continue
            facts = content['networks'][name.split(',')[0]]
            parameters = f'{facts["parameters"] / 1e6:.1f}' if 'parameters' in facts else '-'
            row = [name, f'{facts["top1"]:.1f}', parameters, precision]
            for result in results:
                entry = fastest(result, name, precision)
                row.append(NOT_MEASURED if entry is None else f'{_time(entry)} {entry["runtime"]}')
            rows.append(row)
    return rows


def _all(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [['network', 'runtime', 'precision', *_titles(results)]]
    for name in _names(results):
        entries = [r['candidates'].get(name) for r in results]
        known = next(entry for entry in entries if entry is not None)
        times = [
            _time(entry) if 'median_ms' in (entry or {}) else NOT_MEASURED for entry in entries
        ]
        rows.append([known['of'], known['runtime'], known['precision'], *times])
    return rows


def _cells(results: list[dict[str, Any]], key: str, unit: float, decimals: int) -> list[list[str]]:
    """The networks of which a figure is known."""
    titles = [f'{r["case"]["mode"]}, {t}' for r, t in zip(results, _titles(results), strict=True)]
    on_gpu = any('launch_ms' in e for r in results for e in r['candidates'].values())
    rows = [['network', *(['runtime'] if on_gpu else []), 'precision', *titles]]
    for name in _names(results):
        entries = [r['candidates'].get(name, {}) for r in results]
        figures = [entry.get(key) for entry in entries]
        if any(figures):
            known = next(entry for entry in entries if entry)
            cells = ['-' if x is None else f'{x / unit:.{decimals}f}' for x in figures]
            runtime = [known['runtime']] if on_gpu else []
            rows.append([known['of'], *runtime, known['precision'], *cells])
    return rows


def _reasons(results: list[dict[str, Any]]) -> list[str]:
    """Why cells are empty."""
    lines = [
        f'- {result["case"]["name"]}, {name}: {code(entry["not_measured"])}'
        for result in results
        for name, entry in result['candidates'].items()
        if 'not_measured' in entry
    ]
    return ['Not measured:\n', *lines, ''] if lines else []


def _names(results: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r['candidates']))


def _time(measured: dict[str, Any]) -> str:
    return f'{plain(measured["median_ms"], 4)} ({plain(measured["spread_ms"], 2)})'
