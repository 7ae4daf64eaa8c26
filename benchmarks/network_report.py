"""Writes docs/networks.md and its pictures from the stored results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.network_pictures import draw_accuracy, draw_resolution
from benchmarks.report import plain
from benchmarks.run import RESULTS

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'networks.md'

HEAD = """\
# Speed and memory of whole networks

<!-- Written by `python -m benchmarks report` from benchmarks/results. Do not edit. -->

`make bench-networks` measures the CPU in about half an hour (two cores),
`python -m benchmarks networks --device cuda` a GPU; both rewrite this page. Further cases, with
larger batches, come with `--select all`.

- The networks are backbones with four outputs, as dense prediction uses them, with random
  weights; the rivals are those of mmpretrain. OverLoCK is measured in training form and in fused
  form, RepLKNet in training form and in reparameterized form.
- Within a case the networks run in turns, one call each per round, so that whatever else happens
  on the machine hits all alike. Given are the median and, in parentheses, the distance of the
  quartiles.
- Each network runs in the memory layout, NCHW or channels_last, in which it is faster.
- *ONNX Runtime* runs the exported file (docs/export.md), with as many threads.
- *Memory* is the peak of a call beyond weights and images.
- *Training* is forward, backward and a step of AdamW.
- Top-1 is the published accuracy on ImageNet-1K at 224 x 224, not measured here.
"""
#: (ours, rival, words): the ratios that the project watches.
RATIOS = (
    ('OverLoCK-T, fused form', 'ConvNeXt-B'),
    ('OverLoCK-XT, fused form', 'ConvNeXt-T'),
    ('OverLoCK-T, ONNX Runtime', 'OverLoCK-T, fused form'),
    ('OverLoCK-T, training form', 'ConvNeXt-B'),
)
#: The two cases between which growth is reported.
SMALL, LARGE = 'inference-b1-224x224', 'inference-b1-800x1280'


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
            sections += _device(content)
            for draw, what in ((draw_accuracy, 'accuracy'), (draw_resolution, 'resolution')):
                picture = page.with_name(f'{path.stem}-{what}.svg')
                title = draw(content, picture)
                if title:
                    sections.append(f'![{title}]({picture.name})\n')
    page.write_text('\n'.join(sections), encoding='utf-8')
    return page


def _device(content: dict[str, Any]) -> list[str]:
    machine, results = content['machine'], content['results']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    sections = [
        f'### {machine["device"]}\n',
        f'{machine["date"]}; {machine["threads"]} threads; {content["precision"]}; {versions}.\n',
    ]
    for mode, title in (('inference', 'Inference'), ('training', 'Training')):
        cases = [r for r in results if r['case']['mode'] == mode]
        if cases:
            sections += [f'#### {title}: milliseconds per batch\n', _table(content, cases, _time)]
            sections += [f'#### {title}: images per second\n', _table(content, cases, _rate)]
            sections += [f'#### {title}: memory in MiB\n', _table(content, cases, _memory)]
    ratios = _ratios(results)
    if ratios:
        sections += ['#### Ratios of the medians\n', ratios]
    growth = _growth(results)
    if growth:
        sections += ['#### From 224 x 224 to 800 x 1280: 20.4 times the pixels\n', growth]
    return sections


def _lines(rows: list[list[str]]) -> str:
    rows.insert(1, ['---'] * len(rows[0]))
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def _case_title(case: dict[str, Any]) -> str:
    return f'{case["height"]} x {case["width"]}, batch {case["batch"]}'


def _names(results: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r['contestants']))


def _table(content: dict[str, Any], cases: list[dict[str, Any]], cell: Any) -> str:
    rows = [['network', 'top-1', 'parameters (M)', *(_case_title(r['case']) for r in cases)]]
    for name in _names(cases):
        facts = content['networks'][name.split(',')[0]]
        row = [name, f'{facts["top1"]:.1f}', f'{facts["parameters"] / 1e6:.1f}']
        for result in cases:
            measured = result['contestants'].get(name)
            row.append('not measured' if measured is None else cell(measured))
        rows.append(row)
    return _lines(rows)


def _time(measured: dict[str, Any]) -> str:
    return f'{plain(measured["median_ms"], 4)} ({plain(measured["spread_ms"], 2)})'


def _rate(measured: dict[str, Any]) -> str:
    return f'{measured["images_per_s"]:.3g}'


def _memory(measured: dict[str, Any]) -> str:
    peak = measured.get('peak_extra_bytes')
    return 'not measured' if peak is None else f'{peak / 2**20:.0f}'


def _ratios(results: list[dict[str, Any]]) -> str:
    rows = [['time of', 'over that of', *(_ratio_title(r['case']) for r in results)]]
    for ours, rival in RATIOS:
        row = [ours, rival]
        for result in results:
            pair = [result['contestants'].get(name) for name in (ours, rival)]
            if None in pair:
                row.append('-')
            else:
                row.append(f'{pair[0]["median_ms"] / pair[1]["median_ms"]:.2f}')
        if set(row[2:]) != {'-'}:
            rows.append(row)
    return _lines(rows) if len(rows) > 1 else ''


def _ratio_title(case: dict[str, Any]) -> str:
    return f'{case["mode"]}, {_case_title(case)}'


def _growth(results: list[dict[str, Any]]) -> str:
    by_name = {r['case']['name']: r['contestants'] for r in results}
    if SMALL not in by_name or LARGE not in by_name:
        return ''
    rows = [['network', 'time', 'memory']]
    for name, small in by_name[SMALL].items():
        large = by_name[LARGE].get(name)
        if large is not None:
            row = [name, f'x {large["median_ms"] / small["median_ms"]:.1f}']
            memory = [x.get('peak_extra_bytes') for x in (small, large)]
            row.append(f'x {memory[1] / memory[0]:.1f}' if all(memory) else 'not measured')
            rows.append(row)
    return _lines(rows)
