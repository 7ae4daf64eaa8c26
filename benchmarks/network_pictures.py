"""The pictures of docs/networks.md: accuracy against time, time and memory against pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')  # needs no display

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator  # noqa: E402

from benchmarks.network_results import (  # noqa: E402
    fastest,
    forms_for_inference,
    precisions,
)

#: Text as text and no date, so that the same results give the same small file.
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'overlock_mm', 'font.size': 9}
COLOURS = {
    'OverLoCK': '#c0392b',
    'ConvNeXt': '#2471a3',
    'Swin': '#7d8a00',
    'RepLKNet': '#7d3c98',
}
#: One line per family at these sizes keeps the second picture readable.
FOLLOWED = ('OverLoCK-T, fused form', 'ConvNeXt-B', 'ConvNeXt-T', 'Swin-T')


def _colour(name: str) -> str:
    return next(colour for family, colour in COLOURS.items() if name.startswith(family))


def draw_accuracy(content: dict[str, Any], path: Path) -> str:
    """Published accuracy against measured latency at 224 x 224; the title, empty if not drawn."""
    cases = {r['case']['name']: r for r in content['results']}
    result = cases.get('inference-b1-224x224')
    if result is None:
        return ''
    lines: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for precision in precisions([result]):
        for name in forms_for_inference(result):
            measured = fastest(result, name, precision)
            if measured is not None:
                bare = name.split(',')[0]
                point = (measured['median_ms'], content['networks'][bare]['top1'], bare)
                lines.setdefault((bare.split('-')[0], precision), []).append(point)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.6), layout='constrained')
        for (family, precision), points in lines.items():
            times, accuracies, _ = zip(*sorted(points), strict=True)
            style = 'o--' if precision == 'bfloat16' else 'o-'
            axes.plot(
                times, accuracies, style, color=_colour(family), label=f'{family}, {precision}'
            )
            # Its points in another precision are at the same height.
            for time, accuracy, name in points if precision == precisions([result])[0] else ():
                axes.annotate(name, (time, accuracy), (4, -10), textcoords='offset points')
        axes.legend(fontsize=7, handlelength=4)
        axes.set_xlabel('latency in ms in the fastest runtime, 224 x 224, batch 1 (measured)')
        axes.set_ylabel('ImageNet-1K top-1 in % (published)')
        axes.grid(alpha=0.3)
        axes.margins(x=0.25, y=0.12)  # room for the names
        _save(figure, path)
    return 'Published accuracy against measured latency'


def draw_resolution(content: dict[str, Any], path: Path) -> str:
    """Time and memory against pixels, batch 1; returns the title, empty for a single size."""
    results = [
        r
        for r in content['results']
        if r['case']['mode'] == 'inference' and r['case']['batch'] == 1
    ]
    if len(results) < 2:
        return ''
    results.sort(key=lambda r: r['case']['height'] * r['case']['width'])
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.4), layout='constrained')
        for axes, key, unit, label in zip(
            panels, ('median_ms', 'peak_extra_bytes'), (1, 2**20), ('ms', 'MiB'), strict=True
        ):
            for name in FOLLOWED:
                points = [
                    (r['case']['height'] * r['case']['width'] / 1e6, value / unit)
                    for r in results
                    if (value := _value(r, name, key))
                ]
                if points:
                    style = '--' if name.endswith('-T') else '-'
                    axes.plot(
                        *zip(*points, strict=True), f'o{style}', color=_colour(name), label=name
                    )
            axes.set(xscale='log', yscale='log', ylabel=label)
            axes.set_xticks(
                [r['case']['height'] * r['case']['width'] / 1e6 for r in results],
                [f'{r["case"]["height"]} x {r["case"]["width"]}' for r in results],
            )
            axes.xaxis.set_minor_locator(NullLocator())
            # One label for a factor of two or so: memory spans one decade, time two.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FormatStrFormatter('%g'))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3, which='both')
        panels[0].set_title('time of one image')
        panels[1].set_title('memory beyond weights')
        panels[0].legend(fontsize=8)
        _save(figure, path)
    return 'Time and memory against resolution'


def _value(result: dict[str, Any], name: str, key: str) -> float | None:
    """The time of the fastest runtime in the first precision; the memory of eager mode in it."""
    precision = precisions([result])[0]
    if key == 'median_ms':
        measured = fastest(result, name, precision)
        return None if measured is None else measured[key]
    values = (
        measured.get(key)
        for measured in result['candidates'].values()
        if (measured['of'], measured['precision']) == (name, precision)
    )
    return next((value for value in values if value), None)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={'Date': None})
    plt.close(figure)
