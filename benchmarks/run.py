"""Measures the cases of a device and stores the result as JSON."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import cases, depthwise, implementations, measure
from benchmarks.cases import Case
from benchmarks.depthwise import DepthwiseCase
from overlock_mm.ops.contmix import reference, reference_backend
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.depthwise.backends import BACKENDS
from overlock_mm.utils.files import write_json

logger = logging.getLogger('benchmarks')

RESULTS = Path(__file__).parent / 'results'
DTYPES = {'cpu': (torch.float32,), 'cuda': (torch.float32, torch.bfloat16)}
#: Tolerance, as a share of the largest value of an output or gradient; all sums are in float32.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps}


class Mismatch(RuntimeError):
    """The result of an implementation differs from the reference."""


def results_of(
    function: implementations.Implementation, tensors: list[Tensor], cotangent: Tensor
) -> list[Tensor]:
    """Output and gradients."""
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, cotangent)]


def cotangent_of(tensors: list[Tensor]) -> Tensor:
    """Gradient of the output, which has the shape and dtype of the value."""
    value = tensors[2] if len(tensors) == 6 else tensors[1]
    steps = torch.arange(value.numel(), device=value.device)
    return ((steps * 7 % 13 - 6) / 6).to(value.dtype).view(value.shape)


def expected_results(case: Case, tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Output and gradients of the reference, in float32 from the same values."""
    tensors = [x.detach().float() for x in tensors]
    cotangent = cotangent.float()
    if case.op == 'neighborhood_aggregate':
        out = reference.neighborhood_aggregate(*tensors, case.kernel_size)
        return [
            out,
            *reference_backend.neighborhood_aggregate_backward(
                cotangent, *tensors, case.kernel_size, 1
            ),
        ]
    arguments = ContMixArguments(*tensors, case.kernel_size, implementations.SCALE)
    out, logsumexp = reference_backend.contmix_forward(arguments)
    return [out, *reference_backend.contmix_backward(cotangent, arguments, out, logsumexp)]


@contextmanager
def full_precision() -> Iterator[None]:
    """Products in float32 as such, not in TF32: for expected values."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def _one_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def check(name: str, actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Raise a Mismatch unless output and all gradients are those of the reference."""
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        bound = TOLERANCES[dtype] * wanted.abs().max().item()
        error = (got.detach().float() - wanted).abs().max().item()
        if not error <= bound:  # NaN too
            what = 'the output' if index == 0 else f'gradient {index}'
            raise Mismatch(f'{name}: {what} is off by {error:.3g}, may be off by {bound:.3g}.')


def run_case(
    case: Case, device: torch.device, dtype: torch.dtype, budget: float, baselines: str
) -> dict:
    """Check and time our backends and the baselines whose name matches on one case.

    A baseline that is wrong, runs out of memory or is not compiled costs its own cell only.

    Raises:
        Mismatch: One of our backends gives another result than the reference.
    """
    # Compile each case for itself: after some shapes Dynamo falls back to eager mode in silence.
    torch.compiler.reset()
    tensors = case.arguments(device, dtype)
    cotangent = cotangent_of(tensors)
    with full_precision():
        expected = expected_results(case, tensors, cotangent)
    ours = implementations.backends(case, tensors)
    timed: dict[str, dict] = {}
    for name, function in {**ours, **implementations.baselines(case, device)}.items():
        if name not in ours and not re.search(baselines, name):
            continue
        free = implementations.free_bytes(device)
        if name not in ours and implementations.needed_bytes(case, name) > free:
            timed[name] = {'not_measured': f'needs more memory than the {free >> 20} MiB free'}
            continue
        try:
            check(name, results_of(function, tensors, cotangent), expected, dtype)
            timed[name] = _times(function, tensors, cotangent, device, budget)
        except RuntimeError as error:  # Mismatch and torch.OutOfMemoryError too
            if name in ours and isinstance(error, Mismatch):
                raise
            timed[name] = {'not_measured': _one_line(error)}
            logger.error('  %-26s not measured: %s', name, timed[name]['not_measured'])
            continue
        logger.info(
            '  %-26s forward %9.3f ms, with backward %9.3f ms',
            name,
            timed[name]['forward']['median_ms'],
            timed[name]['forward_backward']['median_ms'],
        )
    result = {
        'case': {**case.as_dict(), 'name': case.name},
        'dtype': str(dtype).removeprefix('torch.'),
        'ours': list(ours),
        'implementations': timed,
    }
    for part, backward in (('forward', False), ('forward_backward', True)):
        # Two products for the gradients and one recomputation for the forward's one.
        flops = case.forward_flops() * (4 if backward else 1)
        result[part] = {'bytes': cases.floor_bytes(tensors, backward), 'flops': flops}
    return result


def run_depthwise_case(
    case: DepthwiseCase, device: torch.device, dtype: torch.dtype, budget: float, baselines: str
) -> dict:
    """Like :func:`run_case`, but only the forward pass.

    Raises:
        Mismatch: An implementation gives another result than the definition.
    """
    tensors = case.arguments(device, dtype)
    with full_precision():
        expected = list(depthwise.expected_results(case, tensors))
    timed: dict[str, dict] = {}
    for name, function in depthwise.functions(case, tensors).items():
        if name not in BACKENDS and not re.search(baselines, name):
            continue
        try:
            check(name, list(function()), expected, dtype)
            timed[name] = depthwise.times(case, function, device, budget)
        except RuntimeError as error:  # Mismatch and torch.OutOfMemoryError too
            if name in BACKENDS and isinstance(error, Mismatch):
                raise
            timed[name] = {'not_measured': _one_line(error)}
            logger.error('  %-26s not measured: %s', name, timed[name]['not_measured'])
            continue
        logger.info('  %-26s forward %9.3f ms', name, timed[name]['forward']['median_ms'])
    return {
        'case': case.as_dict(),
        'dtype': str(dtype).removeprefix('torch.'),
        'ours': [name for name in timed if name in BACKENDS],
        'implementations': timed,
        'forward': {'bytes': case.floor_bytes(tensors), 'flops': case.forward_flops()},
    }


def _times(
    function: implementations.Implementation,
    tensors: list[Tensor],
    cotangent: Tensor,
    device: torch.device,
    budget: float,
) -> dict:
    def forward() -> Tensor:
        with torch.no_grad():
            return function(*tensors)

    def forward_backward() -> list[Tensor]:
        return results_of(function, tensors, cotangent)

    return {
        'forward': measure.time_of(forward, device, budget),
        'forward_backward': measure.time_of(forward_backward, device, budget),
    }


def add_fractions(result: dict, machine: dict) -> None:
    """Each time as a fraction of what bandwidth and matrix units allow, and as a ratio."""
    rate = machine['matmul_flops_per_s'][result['dtype']]
    best = next((result['implementations'][name] for name in result['ours']), None)
    for measured in result['implementations'].values():
        for part in ('forward', 'forward_backward'):
            if part not in measured:
                continue
            seconds = measured[part]['median_ms'] / 1e3
            floor = result[part]
            bandwidth = floor['bytes'] / seconds / machine['copy_bytes_per_s']
            measured[part]['fraction_of_copy_bandwidth'] = bandwidth
            measured[part]['fraction_of_matmul_rate'] = floor['flops'] / seconds / rate
            if best is not None:
                measured[part]['times_ours'] = measured[part]['median_ms'] / best[part]['median_ms']


def add_memory(result: dict, case: Case, device: torch.device, dtype: torch.dtype) -> None:
    """Peak extra memory of forward and backward."""
    tensors = case.arguments(device, dtype)
    cotangent = cotangent_of(tensors)
    functions = {
        **implementations.backends(case, tensors),
        **implementations.baselines(case, device),
    }
    for name, measured in result['implementations'].items():
        if 'not_measured' not in measured and 'compiled' not in name:
            measured['peak_extra_bytes'] = measure.peak_extra_memory(
                lambda f=functions[name]: results_of(f, tensors, cotangent), device
            )


def run(
    device: torch.device, pattern: str, budget: float, baselines: str, results: Path = RESULTS
) -> Path:
    """Measure the cases whose name matches a pattern; the path of the results file.

    Raises:
        RuntimeError: Nothing was measured.
    """
    dtypes = DTYPES[device.type]
    machine = measure.machine(device, dtypes)
    logger.info('%s', json.dumps(machine))
    slug = re.sub(r'[^a-z0-9]+', '-', machine['device'].lower()).strip('-')
    path = results / f'{"gpu" if device.type == "cuda" else "cpu"}-{slug}.json'
    done: list[tuple[dict, Case | DepthwiseCase, torch.dtype]] = []
    refused: list[str] = []

    def store() -> None:
        content = {'machine': machine, 'results': [r for r, _, _ in done], 'refused': refused}
        write_json(path, content)

    for case in cases.all_cases():
        if not re.search(pattern, case.name):
            continue
        for dtype in dtypes:
            logger.info('%s %s', case.name, dtype)
            measure_case = run_depthwise_case if isinstance(case, DepthwiseCase) else run_case
            try:
                result = measure_case(case, device, dtype, budget, baselines)
            except Mismatch as error:
                logger.error('Not reported: %s', error)
                refused.append(f'{case.name} {dtype}: {error}')
                continue
            add_fractions(result, machine)
            done.append((result, case, dtype))
            store()
    if not done:
        raise RuntimeError(f'No case was measured; pattern {pattern!r}, refused: {refused}.')
    measure.return_freed_memory()
    for result, case, dtype in done:
        if isinstance(case, Case):
            add_memory(result, case, device, dtype)
    store()
    return path
