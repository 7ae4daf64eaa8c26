"""``python -m benchmarks.steps``: what each step towards the fused form brings on the CPU.

It measures variant T after every step, all in turns in one process, beside a ConvNeXt-B, and
writes ``benchmarks/results/steps-cpu.json`` and from it ``docs/performance.md``; with
``--report`` writes only the page.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.stored import RESULTS
from overlock_mm import OverLoCK
from overlock_mm.ops import use_backend

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'performance.md'
NOTES = Path(__file__).with_name('steps.md')
#: Height, width and batch.
CASES = ((224, 224, 1), (224, 224, 8), (512, 512, 1))
BASELINE = 'ConvNeXt-B'
STEPS = {
    'published': 'reparameterized form',
    'layout': 'channels_last memory',
    'folded': 'all folded, few passes',
    'fused': 'fused depthwise convolutions',
    'products': 'matrix products of oneDNN',
}

Forward = Callable[[Tensor], object]


def forwards(variant: str, baseline: str) -> dict[str, Forward]:
    """The classification backbone after each step, and the baseline."""
    from mmpretrain.models import ConvNeXt

    network = OverLoCK(variant, output_norm=False, out_indices=(3, 4)).eval()
    published, deploy = deepcopy(network), deepcopy(network)
    published.reparameterize()
    deploy.switch_to_deploy()
    channels_last = deepcopy(published).to(memory_format=torch.channels_last)
    convnext: nn.Module = ConvNeXt(baseline)
    convnext.eval()

    def folded(image: Tensor) -> object:
        with use_backend(depthwise='reference', pointwise='reference'):
            return deploy(image)

    def fused(image: Tensor) -> object:
        with use_backend(pointwise='reference'):
            return deploy(image)

    return {
        BASELINE: convnext,
        'published': published,
        'layout': lambda x: channels_last(x.contiguous(memory_format=torch.channels_last)),
        'folded': folded,
        'fused': fused,
        'products': deploy,
    }


@torch.no_grad()
def measure_case(
    functions: dict[str, Forward], height: int, width: int, batch: int, seconds: float
) -> dict:
    """Medians and quartile distances in milliseconds, taken in turns."""
    image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function(image)
    started = time.perf_counter()
    while len(times[BASELINE]) < 3 or time.perf_counter() - started < seconds:
        for name, function in functions.items():
            before = time.perf_counter()
            function(image)
            times[name].append(time.perf_counter() - before)
    result: dict = {'height': height, 'width': width, 'batch': batch, 'ms': {}}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        result['ms'][name] = {'median': median * 1e3, 'spread': (high - low) * 1e3}
    return result


def write_page(path: Path = RESULTS / 'steps-cpu.json', page: Path = PAGE) -> Path:
    """The page, from the stored result and the notes beside this file."""
    content = json.loads(path.read_text(encoding='utf-8'))
    machine = content['machine']
    lines = [
        f'{machine["device"]}, {machine["threads"]} threads, torch '
        f'{machine["versions"]["torch"]}, {machine["date"]}. Medians in milliseconds and, in '
        f'parentheses, the distance of the quartiles; then the ratio to {BASELINE}.',
        '',
        f'| | {" | ".join(_case_title(case) for case in content["results"])} |',
        '|---' + '|--:' * len(content['results']) + '|',
    ]
    for name, title in {BASELINE: BASELINE, **STEPS}.items():
        cells = []
        for case in content['results']:
            ms = case['ms'][name]
            ratio = ms['median'] / case['ms'][BASELINE]['median']
            cells.append(f'{ms["median"]:.0f} ({ms["spread"]:.0f}), {ratio:.2f}')
        lines.append(f'| {title} | {" | ".join(cells)} |')
    text = NOTES.read_text(encoding='utf-8').replace('{table}', '\n'.join(lines))
    page.write_text(text, encoding='utf-8')
    return page


def _case_title(case: dict) -> str:
    return f'{case["height"]} x {case["width"]}, batch {case["batch"]}'


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, unless only the report is requested, and write the page."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.steps', description=__doc__)
    parser.add_argument('--report', action='store_true', help='only write the page')
    parser.add_argument('--seconds', type=float, default=20, help='for each case')
    arguments = parser.parse_args(argv)
    if not arguments.report:
        functions = forwards('t', 'base')
        machine = measure.machine(torch.device('cpu'), (torch.float32,))
        results = [measure_case(functions, *case, arguments.seconds) for case in CASES]
        content = {'machine': machine, 'variant': 't', 'results': results}
        (RESULTS / 'steps-cpu.json').write_text(
            json.dumps(content, indent=1) + '\n', encoding='utf-8'
        )
    return write_page()


if __name__ == '__main__':
    print(main())
