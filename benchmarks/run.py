"""Measures the cases of a device and stores the result as JSON."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, implementations, measure, problems, tiers
from benchmarks.cases import Case
from benchmarks.cells import Deadline, check_device, measured, one_line
from benchmarks.depthwise import DepthwiseCase
from benchmarks.problems import Function, Problem, full_precision
from benchmarks.stored import RESULTS, earlier, path_of, sources
from overlock_mm.utils.files import write_json

logger = logging.getLogger('benchmarks')

DTYPES = {'cpu': (torch.float32,), 'cuda': (torch.bfloat16, torch.float32)}

Work = tuple[Case | DepthwiseCase, torch.dtype]


@dataclass
class Plan:
    """How a run goes through its cases.

    Attributes:
        kind: 'cpu' or 'gpu', with which the name of the results file begins.
        passes: One after the other; each measures the implementations whose names it accepts.
        resume: Keep what an earlier run has measured on this device with the same code and
            versions. Otherwise everything is measured, and replaces the file.
        deadline: Limits of time.
        memory_at_once: Measure memory in the cell; on a CPU that would slow down later cells.
    """

    kind: str = 'cpu'
    passes: tuple[Callable[[str], bool], ...] = (lambda name: True,)
    resume: bool = False
    deadline: Deadline = field(default_factory=Deadline)
    memory_at_once: bool = False


def gpu_plan(deadline: Deadline, fresh: bool = False) -> Plan:
    """First what needs no compilation, in all cases; then the rest."""
    return Plan(
        'gpu',
        (lambda name: not implementations.is_compiled(name), implementations.is_compiled),
        not fresh,
        deadline,
        memory_at_once=True,
    )


def all_work(device: str) -> list[Work]:
    """Every case in every dtype."""
    return [(case, dtype) for case in cases.all_cases(device) for dtype in DTYPES[device]]


def label(work: Work) -> str:
    """Name of a case in a dtype, as ``--cases`` and the tiers see it."""
    return f'{work[0].name} {_name(work[1])}'


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def run(
    device: torch.device,
    pattern: str,
    budget: float,
    baselines: str,
    results: Path = RESULTS,
    plan: Plan | None = None,
    tier: int | None = None,
) -> Path:
    """Measure the cases whose label matches a pattern; the path of the results file.

    Args:
        device: Where.
        pattern: Regular expression for labels of cases.
        budget: Seconds for each time.
        baselines: Regular expression for the names of what our backends are compared with.
        results: Folder for the file.
        plan: None for that of a CPU.
        tier: A key of :data:`tiers.TIERS`, or None for all cases.

    Raises:
        RuntimeError: Nothing was measured.
        DeviceLostError: The process can no longer use the card; what was measured is stored.
    """
    plan = plan or Plan()
    registry = all_work(device.type)
    work = registry
    if tier is not None:
        work = tiers.selected(work, map(label, work), tier, 'operators')
    work = [item for item in work if re.search(pattern, label(item))]
    table = _Table(device, plan, results, [label(item) for item in registry])
    with full_precision():
        for wanted, (case, dtype) in product(plan.passes, work):
            if plan.deadline.is_over():
                logger.info('The time is over. The same command resumes where this one ended.')
                break
            _measure_case(table, case, device, dtype, budget, baselines, wanted)
        if not any(result['implementations'] for result in table.results.values()):
            raise RuntimeError(
                f'No case was measured; pattern {pattern!r}, refused: {table.refused()}.'
            )
        if not plan.memory_at_once:
            measure.return_freed_memory()  # slows allocation: after the last time
            for case, dtype in work:
                _add_memory(table.results.get(label((case, dtype))), case, device, dtype)
            table.store()
    return table.path


class _Table:
    """The results file of a device, as it grows."""

    def __init__(self, device: torch.device, plan: Plan, folder: Path, order: list[str]) -> None:
        self.plan, self.order = plan, order
        machine = measure.identity(device)
        if plan.resume:
            machine['sources'] = sources()
        self.path = path_of(folder, machine, plan.kind)
        kept = earlier(self.path, machine, ('device', 'versions', 'sources')) if plan.resume else {}
        self.results: dict[str, dict[str, Any]] = {
            f'{result["case"]["name"]} {result["dtype"]}': result
            for result in kept.get('results', [])
        }
        self.machine = kept.get('machine') or {
            **machine,
            **measure.rates(device, DTYPES[device.type]),
        }
        logger.info('%s', json.dumps(self.machine))

    def refused(self) -> list[str]:
        """What our own backends got wrong, and cases that could not be set up."""
        lines = [
            f'{name}: {why}'
            for name, result in self.results.items()
            for backend, cell in result['implementations'].items()
            if (why := cell.get('not_measured', '')).startswith('Mismatch')
            and backend in result['ours']
        ]
        failed = ((n, r) for n, r in self.results.items() if 'not_measured' in r)
        return lines + [f'{name}: {result["not_measured"]}' for name, result in failed]

    def store(self) -> None:
        """Write the file with what there is so far."""
        known = [name for name in self.order if name in self.results]
        self.results = {name: self.results[name] for name in known}
        for result in self.results.values():
            add_fractions(result, self.machine)
        content = {
            'machine': self.machine,
            'results': list(self.results.values()),
            'refused': self.refused(),
        }
        write_json(self.path, content)


def _measure_case(
    table: _Table,
    case: Case | DepthwiseCase,
    device: torch.device,
    dtype: torch.dtype,
    budget: float,
    baselines: str,
    wanted: Callable[[str], bool],
) -> None:
    """Fill the cells of a case that are wanted and missing, and store each."""
    name = label((case, dtype))
    if 'not_measured' in table.results.get(name, {}):
        return
    # Compile each case for itself: after some shapes Dynamo falls back to eager mode in silence.
    torch.compiler.reset()
    logger.info('%s', name)
    try:
        problem = problems.problem(case, device, dtype)
    except Exception as error:  # out of memory, or whatever a kernel may raise
        logger.error('  not measured: %s', one_line(error))
        result = _result(case, dtype)
        table.results[name] = {**result, 'not_measured': one_line(error)}
        table.store()
        check_device(device)
        return
    result = table.results.setdefault(name, _result(case, dtype))
    result |= {'ours': list(problem.ours), **problem.floors}
    for implementation, function in {**problem.ours, **problem.others}.items():
        ours = implementation in problem.ours
        matches = ours or re.search(baselines, implementation)
        if implementation in result['implementations'] or not (matches and wanted(implementation)):
            continue
        cell = measured(
            implementation,
            lambda n=implementation, f=function: _cell(
                n, f, problem, device, budget, table.plan.memory_at_once
            ),
            table.plan.deadline,
        )
        if cell is None:
            return
        result['implementations'][implementation] = cell
        table.store()
        check_device(device)


def _result(case: Case | DepthwiseCase, dtype: torch.dtype) -> dict[str, Any]:
    return {
        'case': {**case.as_dict(), 'name': case.name},
        'dtype': _name(dtype),
        'ours': [],
        'implementations': {},
    }


def _cell(
    name: str,
    function: Function,
    problem: Problem,
    device: torch.device,
    budget: float,
    with_memory: bool,
) -> dict[str, Any]:
    """Check a function and time it.

    Raises:
        Mismatch: It gives another result than the definition.
        MemoryError: It would need more memory than is free.
    """
    free = implementations.free_bytes(device)
    if problem.needed_bytes(name) > free:
        raise MemoryError(f'needs more than the {free >> 20} MiB that are free')
    problem.check(name, function)
    cell = {
        part: measure.time_of(lambda call=call: call(function), device, budget)
        for part, call in problem.parts.items()
    }
    times = (f'{part} {cell[part]["median_ms"]:.3f} ms' for part in problem.parts)
    logger.info('  %-40s %s', name, ', '.join(times))
    if with_memory and 'forward_backward' in problem.parts:
        cell['peak_extra_bytes'] = measure.peak_extra_memory(
            lambda: problem.results(function), device
        )
    return cell


def add_fractions(result: dict[str, Any], machine: dict[str, Any]) -> None:
    """Each time as a fraction of what bandwidth and matrix units allow, and as a ratio."""
    rate = machine['matmul_flops_per_s'][result['dtype']]
    best = best_of(result)
    for cell in result['implementations'].values():
        for part in ('forward', 'forward_backward'):
            if part not in cell:
                continue
            seconds = cell[part]['median_ms'] / 1e3
            floor = result[part]
            bandwidth = floor['bytes'] / seconds / machine['copy_bytes_per_s']
            cell[part]['fraction_of_copy_bandwidth'] = bandwidth
            cell[part]['fraction_of_matmul_rate'] = floor['flops'] / seconds / rate
            if best is not None:
                cell[part]['times_ours'] = cell[part]['median_ms'] / best[part]['median_ms']


def best_of(result: dict[str, Any]) -> dict[str, Any] | None:
    """The cell of our first backend that was measured."""
    cells = (result['implementations'].get(name, {}) for name in result['ours'])
    return next((cell for cell in cells if 'forward' in cell), None)


def _add_memory(
    result: dict[str, Any] | None,
    case: Case | DepthwiseCase,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Peak extra memory of forward and backward, of what needs no compilation."""
    if result is None or isinstance(case, DepthwiseCase):
        return
    problem = problems.problem(case, device, dtype)
    functions = {**problem.ours, **problem.others}
    for name, cell in result['implementations'].items():
        if 'not_measured' not in cell and not implementations.is_compiled(name):
            cell['peak_extra_bytes'] = measure.peak_extra_memory(
                lambda f=functions[name]: problem.results(f), device
            )
