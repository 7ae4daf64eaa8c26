"""Memory and time of a training step; writes its results and docs/training_memory.md.

python -m benchmarks.training_memory
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from benchmarks import measure
from benchmarks.stored import RESULTS
from overlock_mm import OverLoCK, ops
from overlock_mm.analysis import measure_activation_memory
from overlock_mm.layers.recompute import RECOMPUTE, KeptConv2d, RecomputableBlock
from overlock_mm.models.arch import ARCHS
from overlock_mm.ops.contmix import reference

RESULTS_FILE = RESULTS / 'training-memory.json'
PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'training_memory.md'
VARIANT = 't'
PARTS = ('kept', 'times')
#: Selective is torch's checkpointing with a policy that keeps the same as cheap.
TIMED = (*RECOMPUTE, 'selective')
SHAPES = ((224, 224), (512, 512), (800, 1280))

PAGE_TEXT = """\
# Memory of training

<!-- Written by `python -m benchmarks.training_memory`. Do not edit. -->

The activations that a forward pass keeps for the backward pass limit the batch size. Autograd
keeps the input of every operation whose gradient needs it. OverLoCK has many cheap operations
(norms, GELU, gates, small depthwise convolutions) between costly ones, and each of them would keep
a map. The backbone's option `recompute` selects what the backward pass recomputes instead:

| `recompute` | what a block keeps |
| --- | --- |
| `'none'` | whatever autograd keeps |
| `'cheap'`, the default | its inputs and the results of its costly operations |
| `'blocks'` | its inputs |

The costly operations are ContMix, the 1 x 1 and the large depthwise convolutions, and the stem's
dense convolutions. A single value applies to the whole network, a sequence of six to its stages, in
the order of `depths`. OpenMMLab's `with_cp=True`, or one flag for each stage, is another name for
`'blocks'`:

    model = dict(backbone=dict(recompute=('blocks', 'blocks', 'cheap', 'cheap', 'cheap', 'cheap')))

Outputs, gradients and batch-norm statistics are bit-identical, also with stochastic depth and
under autocast (`tests/layers/test_recompute.py`). Recomputed layers run twice in training, so their
forward hooks fire twice, and SyncBN gathers its statistics again in the backward pass. Under
`torch.compile` the option has no effect, because the compiler decides what to keep. Second
derivatives are exact with every option.

To measure your own config and image size:

    python tools/analysis_tools/get_activation_memory.py CONFIG --shape 800 1280

## Bytes kept per image

OverLoCK-{variant} as built for detection, float32, without parameters and buffers; each
storage is counted once. Measured on {counted}. *Plain* is `'none'` with ContMix written out.

{totals}

By the module that first keeps the storage, at {height} x {width}, in MB:

{modules}

All variants at {height} x {width}:

{variants}

## Time of a step

Forward and backward of OverLoCK-{variant} as built for detection, {height} x {width}, batch
{batch_size}, {threads} threads of {device}, torch {torch}, {timed}: median of {rounds} steps,
measured in turn on a machine with other load, so uncertain by a few percent. The last row is
`torch.utils.checkpoint` with a policy that keeps what `'cheap'` keeps; its dispatch modes intercept
every operation of a block twice.

{times}

## Mixed precision

Under autocast with bfloat16 or float16, the outputs are finite and close to those of float32, also
for images and maps with values up to 10000. Relative to the largest value, and in units of the
dtype's eps (2^-7 and 2^-10), a layer or block differs by at most 4, the network in evaluation by at
most 8, and in training by at most 16, because batch statistics of few samples amplify rounding
(`tests/layers/test_autocast.py`). GRN computes its norms in float32: in float16 the norm of a large
map is infinite, and the ratio of two such norms is NaN.
"""

NAMES = {
    'plain': 'plain',
    'none': "`'none'`",
    'cheap': "`'cheap'`",
    'blocks': "`'blocks'`",
    'selective': 'selective checkpointing of torch',
}


class _Chain(TorchFunctionMode):
    """Replaces the fused ContMix by the chain of its operations."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is ops.contmix:
            return reference.contmix(*args, scale=kwargs['scale'])
        return function(*args, **kwargs)


FORMULATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    'plain': _Chain,
    **dict.fromkeys(RECOMPUTE, nullcontext),
}


def build(variant: str, formulation: str) -> OverLoCK:
    """The network in detection form and training mode."""
    torch.manual_seed(0)
    recompute = formulation if formulation in RECOMPUTE else 'none'
    network = OverLoCK(variant, context_residual=True, recompute=recompute)
    if formulation == 'selective':
        checkpoint_selectively(network)
    return network.train()


def checkpoint_selectively(network: OverLoCK) -> None:
    """Let the library keep what ``recompute='cheap'`` keeps."""
    costly = {m.weight.data_ptr() for m in network.modules() if isinstance(m, KeptConv2d)}

    def policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = operator is torch.ops.overlock_mm.contmix.default or (
            operator is torch.ops.aten.convolution.default and args[1].data_ptr() in costly
        )
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    for module in network.modules():
        if isinstance(module, RecomputableBlock):
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, context_fn=contexts
            )


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
    networks = {name: build(variant, name) for name in TIMED}

    def step(name: str) -> None:
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
            ['module', *(NAMES[n] for n in FORMULATIONS)],
            [
                [module, *(_mb(by_module[n].get(module, 0), 1) for n in FORMULATIONS)]
                for module in modules
            ],
        ),
        variants=_totals('variant', {name.upper(): row for name, row in kept['variants'].items()}),
        times=_table(
            ['', 'median (ms)', 'fastest (ms)', 'median / none'],
            [
                [
                    NAMES[name],
                    f'{row["median_ms"]:.0f}',
                    f'{row["fastest_ms"]:.0f}',
                    f'{row["median_ms"] / times["steps"]["none"]["median_ms"]:.2f}',
                ]
                for name, row in times['steps'].items()
            ],
        ),
    )


def _totals(title: str, rows: dict[str, dict[str, int]]) -> str:
    return _table(
        [title, *(f'{NAMES[name]} (MB)' for name in FORMULATIONS), 'cheap / plain'],
        [
            [key, *(_mb(row[n]) for n in FORMULATIONS), f'{row["cheap"] / row["plain"]:.2f}']
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
