"""Which backend is the fastest correct one on this device, for the maps of a network.

``python -m overlock_mm.doctor --tune`` lets the backbone say which operators it calls on which
sizes, runs each through every backend that can, and compares outputs and gradients with those of
the definition in float64. Of those that are right, twice with the same bits, the fastest is
remembered: see :mod:`overlock_mm.ops.preferences`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.overrides import TorchFunctionMode

from overlock_mm.models import OverLoCK
from overlock_mm.ops import (
    contmix,
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
    preferences,
    use_backend,
)
from overlock_mm.ops.contmix.backends import BACKENDS as CONTMIX
from overlock_mm.ops.contmix.backends import Call as ContMixCall
from overlock_mm.ops.depthwise.backends import BACKENDS as DEPTHWISE
from overlock_mm.ops.depthwise.backends import Call as DepthwiseCall
from overlock_mm.ops.selection import Backends, Call
from overlock_mm.ops.self_test import TOLERANCES
from overlock_mm.utils.files import write_json
from overlock_mm.utils.timing import time_runs

OPERATORS = (contmix, depthwise_conv2d, depthwise_conv2d_norm, depthwise_conv2d_stats)
RUNS = 15


@dataclass(frozen=True, eq=False)
class Problem:
    """A call that the network makes: the operator and its arguments, tensors without values."""

    operator: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def shape(self) -> torch.Size:
        """The shape of the map."""
        return self.arguments[2 if self.operator is contmix else 0].shape

    @property
    def elements(self) -> int:
        """Number of elements of the map."""
        return self.shape.numel()

    @property
    def kernel_size(self) -> int:
        """Side of the window."""
        return self.arguments[6] if self.operator is contmix else self.arguments[1].shape[-1]

    @property
    def family(self) -> Backends:
        """The backends in question."""
        return CONTMIX if self.operator is contmix else DEPTHWISE

    @property
    def differentiable(self) -> bool:
        """Whether the gradient counts too; the depthwise operators are for inference."""
        return self.operator is contmix

    def call(self, device: torch.device, dtype: torch.dtype, gradient: bool = False) -> Call:
        """What the selection is asked."""
        if self.operator is contmix:
            arguments = [_on(x, device, dtype) for x in self.arguments]
            scale = self.options.get('scale', 1.0)
            return ContMixCall.contmix(*arguments, scale, gradient=gradient)
        return DepthwiseCall(
            self.operator.__name__,
            device,
            dtype,
            kernel_size=self.kernel_size,
            elements=self.elements,
        )


@dataclass(frozen=True)
class Result:
    """What became of a backend.

    Attributes:
        milliseconds: Shortest time of the call, with its gradient where that counts.
        trouble: Why it is not used, or None.
    """

    milliseconds: float | None = None
    trouble: str | None = None


class _Recorder(TorchFunctionMode):
    """Collect the calls of this package's operators, one of each kind and size."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[tuple[Any, ...], Problem] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for operator in OPERATORS:
            if func is operator:
                problem = Problem(operator, args, kwargs)
                shapes = tuple(x.shape if isinstance(x, Tensor) else x for x in args)
                self.problems.setdefault((operator, shapes), problem)
        return func(*args, **kwargs)


def problems_of(
    arch: Any, image_size: tuple[int, int], batch: int, context_residual: bool = True
) -> list[Problem]:
    """The calls that the backbone makes, in training form (ContMix) and fused (all).

    Args:
        arch: As of :class:`OverLoCK`.
        image_size: Height and width of the images.
        batch: Number of images.
        context_residual: As of :class:`OverLoCK`.
    """
    recorder = _Recorder()
    with torch.no_grad():
        model = OverLoCK(arch, context_residual=context_residual).eval()
        model.switch_to_deploy()
        # Shapes are all that counts, and the operators have meta implementations.
        model = model.to('meta')
        # Said here, because on 'meta' no other backend runs, which would be worth a warning.
        with recorder, use_backend(contmix='reference', depthwise='reference'):
            model(torch.empty(batch, 3, *image_size, device='meta'))
    return list(recorder.problems.values())


def measure(problem: Problem, device: torch.device, dtype: torch.dtype) -> dict[str, Result]:
    """Each backend's result for a problem, in the order of automatic choice."""
    try:
        wanted = _run(problem, 'reference', device, torch.float64, dtype)
    except torch.OutOfMemoryError:
        trouble = 'out of memory for the definition in float64; remedy: a smaller --batch-size'
        return dict.fromkeys(problem.family, Result(trouble=trouble))
    results = {}
    for name in problem.family:
        try:
            results[name] = _measure(problem, name, wanted, device, dtype)
        except torch.OutOfMemoryError:
            results[name] = Result(trouble='out of memory')
        except Exception as error:  # whatever a compiler raises must not end the comparison
            message = f'{type(error).__name__}: {error}'
            results[name] = Result(trouble=' '.join(message.split())[:300])
    return results


def _measure(
    problem: Problem,
    name: str,
    wanted: Sequence[Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Result:
    for gradient in {False, problem.differentiable}:
        reasons = problem.family.why_not(name, problem.call(device, dtype, gradient))
        if reasons:
            return Result(trouble=' '.join(reasons))
    first = _run(problem, name, device, dtype, dtype)
    bound = TOLERANCES[dtype]
    for got, expected in zip(first, wanted, strict=True):
        error = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not error <= bound:  # written so that NaN fails
            return Result(
                trouble=f'differs by {error:.1e} of the largest value; {bound:.1e} is allowed'
            )
    again = _run(problem, name, device, dtype, dtype)
    if name != 'reference' and any(
        not torch.equal(x, y) for x, y in zip(first, again, strict=True)
    ):
        return Result(trouble='two runs gave different bits')
    return Result(_time(problem, name, device, dtype))


def best_of(results: Mapping[str, Result]) -> str | None:
    """The fastest backend among those that are right."""
    times = {name: r.milliseconds for name, r in results.items() if r.milliseconds is not None}
    return min(times, key=lambda name: times[name]) if times else None


def tune(
    arch: Any,
    image_size: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    console: Console,
) -> None:
    """Measure all problems of a network, print a table, and remember the best backends.

    What the file holds of other devices, versions, dtypes and sizes stays.
    """
    measured = {
        problem: measure(problem, device, dtype) for problem in problems_of(arch, image_size, batch)
    }
    entries: dict[str, dict[int, str]] = {}
    for problem, results in measured.items():
        if best := best_of(results):
            topic = preferences.topic(problem.call(device, dtype))
            entries.setdefault(topic, {})[problem.elements] = best
    store(device, entries)
    _report(measured, device, console)


def store(device: torch.device, entries: Mapping[str, Mapping[int, str]]) -> None:
    """Add measurements to the file of :mod:`overlock_mm.ops.preferences`.

    Args:
        device: Where they were made.
        entries: For each ``preferences.topic``, sizes of the map in elements and the backend of
            each.
    """
    content = {name: dict(stored) for name, stored in preferences.stored().items()}
    here = content.setdefault(preferences.device_and_versions(device), {})
    for name, sizes in entries.items():
        here[name] = sorted({**dict(here.get(name, ())), **sizes}.items())
    write_json(preferences.cache_file(), content)
    preferences.stored.cache_clear()


def _report(
    measured: Mapping[Problem, Mapping[str, Result]], device: torch.device, console: Console
) -> None:
    names = list(dict.fromkeys(name for results in measured.values() for name in results))
    names = [
        name
        for name in names
        if any(name in r and r[name].milliseconds is not None for r in measured.values())
    ]
    table = Table('operator', 'K', 'map', *names, 'fastest')
    troubles: dict[tuple[str, str], None] = {}
    for problem, results in measured.items():
        table.add_row(
            problem.operator.__name__,
            str(problem.kernel_size),
            'x'.join(map(str, problem.shape)),
            *(_cell(results.get(name)) for name in names),
            best_of(results) or '-',
        )
        troubles |= dict.fromkeys((name, r.trouble) for name, r in results.items() if r.trouble)
    console.print(table)
    console.print(
        f'Milliseconds (for contmix with its gradient) on {preferences.device_and_versions(device)}'
    )
    for name, trouble in troubles:
        console.print(f'not measured: {name}: {trouble}', markup=False)
    console.print(f'The fastest are used from now on, as {preferences.cache_file()} says.')


def _cell(result: Result | None) -> str:
    if result is None or result.milliseconds is None:
        return '-'
    return f'{result.milliseconds:.3f}'


def _on(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A recorded tensor on the device, without values; anything else as it is."""
    return (
        x
        if not isinstance(x, Tensor)
        else torch.empty(0, device=device, dtype=dtype).new_empty(x.shape)
    )


def _tensors(
    problem: Problem, device: torch.device, dtype: torch.dtype, rounded_to: torch.dtype
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments with values, the same in every dtype: those of ``rounded_to``."""
    generator = torch.Generator().manual_seed(0)

    def filled(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        # Products of about one, however many terms they have.
        scale = x[0].numel() ** -0.5 if x.dim() != 5 and x.dim() > 1 else 1.0
        values = torch.randn(x.shape, generator=generator).mul_(scale).to(rounded_to)
        if x.dim() == 4 and problem.operator is not contmix:
            values = values.contiguous(memory_format=torch.channels_last)
        return values.to(device, dtype)

    return (
        [filled(x) for x in problem.arguments],
        {name: filled(x) for name, x in problem.options.items() if name != 'backend'},
    )


def _run(
    problem: Problem,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    rounded_to: torch.dtype,
) -> list[Tensor]:
    """Results of a backend, and gradients where they count."""
    arguments, options = _tensors(problem, device, dtype, rounded_to)
    return list(_step(problem, name, arguments, options))


def _step(
    problem: Problem, name: str, arguments: Sequence[Any], options: Mapping[str, Any]
) -> Iterator[Tensor]:
    if not problem.differentiable:
        with torch.no_grad():
            out = problem.operator(*arguments, **options, backend=name)
        yield from [out] if isinstance(out, Tensor) else out
        return
    leaves = [x.detach().requires_grad_() for x in arguments if isinstance(x, Tensor)]
    rest = [x for x in arguments if not isinstance(x, Tensor)]
    out = problem.operator(*leaves, *rest, **options, backend=name)
    yield out.detach()
    yield from torch.autograd.grad(out, leaves, torch.ones_like(out))


def _time(problem: Problem, name: str, device: torch.device, dtype: torch.dtype) -> float:
    """Milliseconds; on a GPU of a captured graph, without the time of Python.

    The shortest of some runs: other work on the machine only ever adds to a time.
    """
    arguments, options = _tensors(problem, device, dtype, dtype)
    times = time_runs(
        lambda: list(_step(problem, name, arguments, options)), device, runs=(RUNS, RUNS)
    )
    return min(times.seconds) * 1e3
