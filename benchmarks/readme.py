"""Writes the tables of README.md: the model zoo from the metafiles, the speed from the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.network_results import fastest, precisions, runtimes, setting, version
from benchmarks.stored import RESULTS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
VARIANTS = ('xt', 't', 's', 'b')
#: Columns of published results: the title, the config and its metrics.
RECIPES = (
    ('ImageNet-1K top-1', 'classification/overlock_{}.py', ('Top 1 Accuracy',)),
    (
        'Mask R-CNN 1x, box / mask AP',
        'detection/mask_rcnn_overlock_{}_1x.py',
        ('box AP', 'mask AP'),
    ),
    (
        'Mask R-CNN 3x, box / mask AP',
        'detection/mask_rcnn_overlock_{}_3x.py',
        ('box AP', 'mask AP'),
    ),
    ('UperNet, mIoU', 'segmentation/upernet_overlock_{}.py', ('mIoU',)),
)
ROWS = ('OverLoCK-T, fused form', 'ConvNeXt-B', 'OverLoCK-XT, fused form', 'ConvNeXt-T')
CASES = ('inference-b1-224x224', 'inference-b1-512x512', 'inference-b1-800x1280')


def write(path: Path = README) -> Path:
    """Replace the generated parts of the README; its path."""
    path.write_text(filled(path.read_text(encoding='utf-8')), encoding='utf-8')
    return path


def filled(text: str) -> str:
    """The README with its generated parts, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Raises:
        ValueError: A part has no place in the text.
    """
    for name, table in (('model zoo', model_zoo()), ('speed', speed())):
        pattern = re.compile(f'(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)', re.DOTALL)
        text, places = pattern.subn(lambda match, table=table: match[1] + table + match[2], text)
        if places != 1:
            raise ValueError(f'README.md has {places} places for the part {name!r}; it needs one.')
    return text


def model_zoo() -> str:
    """Variants with their published results, from ``configs/*/metafile.yml``."""
    models = {
        model['Config'].removeprefix('configs/'): model
        for path in sorted(ROOT.glob('configs/*/metafile.yml'))
        for model in yaml.safe_load(path.read_text(encoding='utf-8'))['Models']
    }
    titles = ['variant', 'parameters', 'multiply-adds', *(title for title, _, _ in RECIPES)]
    rows = []
    for variant in VARIANTS:
        classifier = models[RECIPES[0][1].format(variant)]['Metadata']
        row = [
            f'OverLoCK-{variant.upper()}',
            f'{classifier["Parameters"] / 1e6:.1f} M',
            f'{classifier["FLOPs"] / 1e9:.1f} G',
        ]
        for _, config, metrics in RECIPES:
            row.append(_published(models[config.format(variant)], metrics))
        rows.append(row)
    return _table(titles, rows)


def _published(model: dict[str, Any], metrics: Iterable[str]) -> str:
    values = {
        name: value
        for result in model.get('Results', ())
        for name, value in result['Metrics'].items()
    }
    figures = ' / '.join(str(values[name]) for name in metrics) if values else 'not published'
    links = [f'[config]({model["Config"]})']
    if 'Converted From' in model:
        links.append(f'[weights]({model["Converted From"]["Weights"]})')
    return f'{figures} ({", ".join(links)})'


def speed() -> str:
    """The fastest runtimes on the processor that was measured last."""
    files = RESULTS.glob('networks-cpu-*.json')
    content = max(
        (json.loads(path.read_text(encoding='utf-8')) for path in files),
        key=lambda content: content['machine']['date'],
    )
    machine, cases = content['machine'], {r['case']['name']: r for r in content['results']}
    measured = [cases[name] for name in CASES if name in cases]
    sizes = [result['case'] for result in measured]
    titles = ['network', 'top-1', 'precision', *(f'{c["height"]} x {c["width"]}' for c in sizes)]
    rows = [
        [
            name,
            str(content['networks'][name.partition(',')[0]]['top1']),
            precision,
            *(_fastest(result, name, precision) for result in measured),
        ]
        for precision in precisions(cases.values())
        for name in ROWS
    ]
    packages = ', '.join(
        f'{name} {version(machine, name)}' for name in ('torch', 'onnxruntime', 'openvino')
    )
    return (
        f'{machine["device"]}, {setting(machine)}, {packages}, {machine["date"]}; backbones with '
        'four outputs, one image. Each time is the median in the fastest of these runtimes: '
        f'{", ".join(runtimes(measured))}.\n\n'
    ) + _table(titles, rows)


def _fastest(result: dict[str, Any], name: str, precision: str) -> str:
    measured = fastest(result, name, precision)
    return f'{measured["median_ms"]:.0f} ms, {measured["runtime"]}' if measured else 'not measured'


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ['---'] + ['--:'] * (len(titles) - 1), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
