"""Memory and time of a training step; writes its results and docs/training_memory.md.

python -m benchmarks.training_memory
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from benchmarks import measure
from benchmarks.run import RESULTS
from overlock_mm import OverLoCK, ops
from overlock_mm.analysis import measure_activation_memory
from overlock_mm.models.arch import ARCHS
from overlock_mm.ops.contmix import reference

RESULTS_FILE = RESULTS / 'training-memory.json'
PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'training_memory.md'
VARIANT = 't'
PARTS = ('kept', 'times')
SHAPES = ((224, 224), (512, 512), (800, 1280))

PAGE_TEXT = """\
# Memory of training

<!-- Written by `python -m benchmarks.training_memory`. Do not edit. -->

What a forward pass keeps for the backward pass decides how large a batch fits. Autograd keeps the
input of every operation whose gradient needs it; OverLoCK has many cheap ones between two
convolutions (norms, GELU, gates), and each would keep a map. So it keeps the first map of such a
chain alone and computes the others again in the backward pass (`overlock_mm/models/lean.py`). Of
the convolutions the small depthwise ones are computed again too, those of the dilated branches
and the 3 x 3 of an MLP; the 1 x 1, the dense and the large depthwise ones never are.

Outputs, gradients and batch-norm statistics are those of the plain formulation to the last bit
(`tests/models/test_lean.py`). There is nothing to switch on. A SyncBN in such a chain gathers its
statistics once more in the backward pass. Under `torch.compile` the chains are written out, as
its partitioner decides by itself what to keep.

`with_cp=True`, or a flag for each stage, goes further and keeps the inputs of blocks alone:

    model = dict(backbone=dict(with_cp=(True, True, False, False, False, False)))

To count for your own config and size of image:

    python tools/analysis_tools/get_activation_memory.py CONFIG --shape 800 1280

## Bytes kept for each image

OverLoCK-{variant} in detection form, float32: every storage once, without parameters and
buffers, on {counted}. *Plain* is every operation and ContMix written out; *fused ContMix* is the
same with our operator.

{totals}

By the module that keeps it first, at {height} x {width}, in MB:

{modules}

All variants at {height} x {width}:

{variants}

## Time of a step

Forward and backward of OverLoCK-{variant} in detection form, {height} x {width}, batch
{batch_size}, {threads} threads of {device}, torch {torch}, {timed}: median of {rounds} steps,
taken in turn on a machine that had other work, so by some percent uncertain.

{times}

## Mixed precision

Under autocast with bfloat16 or float16 the outputs are finite and near those of float32, for
images and maps with values up to 10000 too. Of the largest value, and in units of the dtype's eps
(2^-7 and 2^-10), a layer or block differs by at most 4, the network in evaluation by at most 8,
and in training by at most 16, as batch statistics of few samples amplify rounding
(`tests/models/test_autocast.py`). GRN takes its norms in float32: in float16 the norm of a large
map is infinite, and the ratio of two such norms is NaN.
"""

NAMES = {
    'plain': 'plain',
    'fused': 'fused ContMix',
    'default': 'default',
    'with_cp': '`with_cp=True`',
}


@contextmanager
def plain_formulation() -> Iterator[None]:
    """Let autograd keep whatever it needs, as if every chain of steps were written out."""
    with mock.patch('overlock_mm.models.lean._pays', return_value=False):
        yield


class _Chain(TorchFunctionMode):
    """Puts the chain of its operations in the place of the fused ContMix."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is ops.contmix:
            return reference.contmix(*args, scale=kwargs['scale'])
        return function(*args, **kwargs)


@contextmanager
def _written_out() -> Iterator[None]:
    """The plain formulation, with ContMix as the chain of its operations."""
    with plain_formulation(), _Chain():
        yield


FORMULATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    'plain': _written_out,
    'fused': plain_formulation,
    'default': nullcontext,
    'with_cp': nullcontext,
}


def build(variant: str, formulation: str) -> OverLoCK:
    """The network in detection form and training mode."""
    torch.manual_seed(0)
    network = OverLoCK(variant, context_residual=True, with_cp=formulation == 'with_cp')
    return network.train()


def count(variant: str, shape: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Bytes kept for an image, by formulation and module."""
    kept = {}
    for name, context in FORMULATIONS.items():
        with context():
            counted = measure_activation_memory(
                build(variant, name), lambda net, image: net(image), shape
            )
        kept[name] = counted.by_module
    return kept


def step_of(
    variant: str, shape: tuple[int, int], batch_size: int
) -> tuple[Callable[[str], None], list[str]]:
    """A function that takes a step in a formulation, and the formulations that it knows."""
    images = torch.rand(batch_size, 3, *shape)
    networks = {name: build(variant, name) for name in FORMULATIONS if name != 'plain'}

    def step(name: str) -> None:
        with FORMULATIONS[name]():
            sum(out.mean() for out in networks[name](images)).backward()
        networks[name].zero_grad()

    return step, list(networks)


def time_steps(
    variant: str, shape: tuple[int, int], batch_size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Median and fastest time of a step in milliseconds; the formulations in turn, every round."""
    step, names = step_of(variant, shape, batch_size)
    for name in names:
        step(name)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, taken in times.items():
            start = time.perf_counter()
            step(name)
            taken.append(1e3 * (time.perf_counter() - start))
    return {
        name: {'median_ms': statistics.median(taken), 'fastest_ms': min(taken)}
        for name, taken in times.items()
    }


def run(part: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Measure one part of the results: kept or times."""
    if part == 'kept':
        return {
            'date': date.today().isoformat(),
            'images': {f'{h} x {w}': count(VARIANT, (h, w)) for h, w in SHAPES},
            'variants': {
                name: {key: sum(kept.values()) for key, kept in count(name, SHAPES[0]).items()}
                for name in ARCHS
            },
        }
    return {
        'machine': measure.machine(torch.device('cpu'), ()),
        'batch_size': batch_size,
        'rounds': rounds,
        'steps': time_steps(VARIANT, SHAPES[0], batch_size, rounds),
    }


def page(content: dict[str, Any]) -> str:
    """The page about a results file's content."""
    kept, times = content['kept'], content['times']
    machine = times['machine']
    by_module = next(iter(kept['images'].values()))
    modules = sorted(
        {module for counts in by_module.values() for module in counts},
        key=lambda name: (-max(counts.get(name, 0) for counts in by_module.values()), name),
    )
    height, width = SHAPES[0]
    return PAGE_TEXT.format(
        variant=VARIANT.upper(),
        counted=kept['date'],
        timed=machine['date'],
        device=machine['device'],
        threads=machine['threads'],
        torch=machine['versions']['torch'],
        height=height,
        width=width,
        batch_size=times['batch_size'],
        rounds=times['rounds'],
        totals=_totals(
            'image',
            {
                size: {name: sum(counts.values()) for name, counts in formulations.items()}
                for size, formulations in kept['images'].items()
            },
        ),
        modules=_table(
            ['module', *NAMES.values()],
            [[module, *(_mb(by_module[n].get(module, 0), 1) for n in NAMES)] for module in modules],
        ),
        variants=_totals('variant', {name.upper(): row for name, row in kept['variants'].items()}),
        times=_table(
            ['', 'median (ms)', 'fastest (ms)', 'median / fused ContMix'],
            [
                [
                    NAMES[name],
                    f'{row["median_ms"]:.0f}',
                    f'{row["fastest_ms"]:.0f}',
                    f'{row["median_ms"] / times["steps"]["fused"]["median_ms"]:.2f}',
                ]
                for name, row in times['steps'].items()
            ],
        ),
    )


def _totals(title: str, rows: dict[str, dict[str, int]]) -> str:
    return _table(
        [title, *(f'{name} (MB)' for name in NAMES.values()), 'default / plain'],
        [
            [key, *(_mb(row[n]) for n in NAMES), f'{row["default"] / row["plain"]:.2f}']
            for key, row in rows.items()
        ],
    )


def _mb(size: int, digits: int = 0) -> str:
    return f'{size / 1e6:.{digits}f}'


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main() -> None:
    """Measure as the command line says, and write both files."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.training_memory')
    parser.add_argument(
        'parts', nargs='*', help=f'parts to measure again: {", ".join(PARTS)}; default: all'
    )
    parser.add_argument('--batch-size', type=int, default=2, help='of a timed step')
    parser.add_argument('--rounds', type=int, default=5, help='timed steps of each formulation')
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f'unknown parts {", ".join(unknown)}; known: {", ".join(PARTS)}.')
    content = json.loads(RESULTS_FILE.read_text()) if RESULTS_FILE.is_file() else {}
    for part in PARTS:
        if part in arguments.parts or not arguments.parts or part not in content:
            content[part] = run(part, arguments.batch_size, arguments.rounds)
    RESULTS_FILE.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    PAGE.write_text(page(content), encoding='utf-8')
    print(f'Results in {RESULTS_FILE}, tables in {PAGE}')


if __name__ == '__main__':
    main()
