"""Measures whole networks on the CPU, all of a case in turns, and stores the result as JSON."""

from __future__ import annotations

import logging
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.cells import compiling
from benchmarks.network_candidates import EAGER, PRECISIONS, Candidate, candidate
from benchmarks.networks import (
    MAIN,
    NETWORKS,
    Network,
    NetworkCase,
    all_cases,
    forms,
    name_in_form,
)
from benchmarks.runtimes import RUNTIMES, Work
from benchmarks.stored import RESULTS, earlier, path_of, sources
from overlock_mm.utils.files import write_json

logger = logging.getLogger('benchmarks')

#: Fewest and most rounds of a case, regardless of the budget.
ROUNDS = (3, 20)
#: Wall time; or time of the processor, for machines that do other work meanwhile.
CLOCKS: dict[str, Callable[[], float]] = {'wall': time.perf_counter, 'cpu': time.process_time}
CPU = torch.device('cpu')


class Models:
    """Networks by name and form, built at first use."""

    def __init__(self) -> None:
        self._built: dict[tuple[str, ...], nn.Module] = {}

    def get(self, network: Network, form: str, precision: str = 'float32') -> nn.Module:
        """The network in a form and a precision."""
        key = (network.name, form, precision)
        if key not in self._built and precision != 'float32':
            self._built[key] = deepcopy(self.get(network, form)).to(PRECISIONS[precision])
        elif key not in self._built:
            torch.manual_seed(0)
            model = network.build()
            if form != 'training':
                model.eval()
                model.switch_to_deploy()
            self._built[key] = model
        return self._built[key]


def in_eager_mode(case: NetworkCase, network: Network) -> Iterator[tuple[str, str, str]]:
    """Name in the results, form and precision of what a network is in eager mode."""
    *others, last = forms(network, case.mode)
    for form in others if case.mode == 'inference' else (*others, last):
        yield name_in_form(network, form), form, 'float32'
    if case.mode == 'inference':
        for precision in PRECISIONS:
            yield _name(network, last, EAGER, precision), last, precision


def _name(network: Network, form: str, runtime: str, precision: str) -> str:
    return ', '.join((name_in_form(network, form), runtime, precision))


def candidates_of(
    case: NetworkCase, networks: Sequence[Network], models: Models, folder: Path, pattern: str
) -> dict[str, Candidate]:
    """All that can run the case; what cannot is left out, and logged."""
    candidates: dict[str, Candidate] = {}
    for network in networks:
        last = forms(network, case.mode)[-1]
        for name, form, precision in in_eager_mode(case, network):
            model = models.get(network, form, precision)
            entry = _tried(name, partial(candidate, model, case, precision))
            if entry is not None:
                entry.precision = precision
                candidates[name] = entry
            if case.mode == 'inference' and form == last:
                exported, layout = models.get(network, form), entry and entry.layout
                work = Work(model, exported, case, precision, layout, folder)
                candidates |= _in_runtimes(work, network, form, pattern)
    return candidates


def _in_runtimes(work: Work, network: Network, form: str, pattern: str) -> dict[str, Candidate]:
    """The network in every other runtime."""
    candidates = {}
    for runtime in RUNTIMES:
        sensible = work.precision in runtime.precisions and (runtime.for_ours or not network.ours)
        if not (sensible and re.search(pattern, runtime.name)):
            continue
        name = _name(network, form, runtime.name, work.precision)
        entry = _tried(name, partial(runtime.make, work))
        if entry is not None:
            entry.runtime, entry.precision = runtime.name, work.precision
            candidates[name] = entry
    return candidates


def _tried(name: str, make: Callable[[], Candidate]) -> Candidate | None:
    """The candidate after a first call, or None where that fails."""
    logger.info('  %s', name)
    try:
        entry = make()
        entry.call()
    # Whatever a runtime that cannot run the network may raise.
    except Exception as error:
        logger.warning('  not measured: %s: %s', type(error).__name__, error)
        return None
    return entry


def time_in_turns(
    candidates: dict[str, Candidate],
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run each once per round, until the budget in seconds is spent.

    Other activity on the machine then affects all of them equally.
    """
    started = time.perf_counter()
    for round_index in range(ROUNDS[1]):
        if round_index >= ROUNDS[0] and time.perf_counter() - started > budget:
            return
        for entry in candidates.values():
            before = clock()
            entry.call()
            entry.seconds.append(clock() - before)


def summary(name: str, entry: Candidate, case: NetworkCase) -> dict[str, Any]:
    """What ran, its median and the distance of the quartiles."""
    low, median, high = statistics.quantiles(entry.seconds, n=4, method='inclusive')
    return {
        'of': name.removesuffix(f', {entry.runtime}, {entry.precision}'),
        'runtime': entry.runtime,
        'precision': entry.precision,
        'median_ms': median * 1e3,
        'spread_ms': (high - low) * 1e3,
        'runs': len(entry.seconds),
        'images_per_s': case.batch / median,
        'layout': entry.layout,
    }


def run(
    select: str,
    pattern: str,
    network_pattern: str,
    budget: float,
    results: Path = RESULTS,
    runtimes: str = '',
    clock: str = 'wall',
    fresh: bool = False,
) -> Path:
    """Measure the selected cases that are missing; the path of the results file.

    Args:
        select: 'main' for the cases of :data:`MAIN`, 'all' for the whole registry.
        pattern: Regular expression for names of cases.
        network_pattern: Regular expression for names of networks.
        budget: Seconds per case for the rounds beyond the third.
        results: Folder for the file.
        runtimes: Regular expression for names of runtimes beside eager mode.
        clock: A key of :data:`CLOCKS`.
        fresh: Measure again what an earlier run has measured.

    Raises:
        RuntimeError: Nothing was selected, or the clock does not suit the threads.
    """
    if clock == 'cpu' and torch.get_num_threads() > 1:
        raise RuntimeError(
            'The clock cpu is for one thread, because threads that wait for each other count too. '
            'Remedy: OMP_NUM_THREADS=1, or --clock wall.'
        )
    wanted = [
        case
        for case in all_cases('cpu')
        if (select == 'all' or case.name in MAIN) and re.search(pattern, case.name)
    ]
    networks = [network for network in NETWORKS if re.search(network_pattern, network.name)]
    if not wanted or not networks:
        raise RuntimeError(
            f'Nothing to measure: cases {pattern!r} among {select}, networks {network_pattern!r}.'
        )
    table = _Table(results, clock, fresh)
    models = Models()
    for network in networks:
        table.networks[network.name] = _facts(network, models)
    with tempfile.TemporaryDirectory() as folder:
        for case in wanted:
            selection = {'networks': [network.name for network in networks], 'runtimes': runtimes}
            if table.selection(case) == selection:
                logger.info('%s was measured before; --fresh measures it again', case.name)
                continue
            logger.info('%s', case.name)
            # Compiled networks are of the case and hold much memory.
            with compiling():
                entries = candidates_of(case, networks, models, Path(folder), runtimes)
                time_in_turns(entries, budget, CLOCKS[clock])
            measured = {name: summary(name, entry, case) for name, entry in entries.items()}
            for name, values in measured.items():
                logger.info('  %-60s %9.1f ms', name, values['median_ms'])
            del entries
            table.add(case, selection, measured)
    measure.return_freed_memory()  # slows allocation: after the last time
    for case in wanted:
        _measure_memory(case, networks, models, table)
    return table.path


class _Table:
    """The results file of this processor, as it grows: a run that is stopped loses one case."""

    def __init__(self, folder: Path, clock: str, fresh: bool) -> None:
        code = sources('export')
        self.machine = {**measure.machine(CPU, (torch.float32,)), 'clock': clock, 'sources': code}
        self.path = path_of(folder, self.machine, 'networks-cpu')
        same = ('device', 'threads', 'versions', 'clock', 'sources')
        kept = {} if fresh else earlier(self.path, self.machine, same)
        self.networks: dict[str, Any] = kept.get('networks', {})
        self.results: dict[str, Any] = {r['case']['name']: r for r in kept.get('results', [])}

    def selection(self, case: NetworkCase) -> dict[str, Any] | None:
        """What was selected when the case was measured, in one go; None if it was not."""
        return self.results.get(case.name, {}).get('selection')

    def candidates(self, case: NetworkCase) -> dict[str, Any]:
        """What was measured in the case; to be changed in place, and stored."""
        return self.results[case.name]['candidates']

    def add(self, case: NetworkCase, selection: dict[str, Any], candidates: dict[str, Any]) -> None:
        """Store a case in place of an earlier one."""
        self.results[case.name] = {
            'case': {**case.as_dict(), 'name': case.name},
            'selection': selection,
            'candidates': candidates,
        }
        self.store()

    def store(self) -> None:
        """Write the file."""
        known = [self.results[c.name] for c in all_cases('cpu') if c.name in self.results]
        write_json(
            self.path, {'machine': self.machine, 'networks': self.networks, 'results': known}
        )


def _measure_memory(
    case: NetworkCase, networks: Sequence[Network], models: Models, table: _Table
) -> None:
    """Add what is missing of the memory in eager mode."""
    for network in networks:
        for name, form, precision in in_eager_mode(case, network):
            measured = table.candidates(case).get(name, {'peak_extra_bytes': 0})
            if 'peak_extra_bytes' not in measured:
                model = models.get(network, form, precision)
                entry = candidate(model, case, precision, measured['layout'])
                measured['peak_extra_bytes'] = measure.peak_extra_memory(entry.call, CPU)
    logger.info('%s: memory', case.name)
    table.store()


def _facts(network: Network, models: Models) -> dict[str, Any]:
    form = forms(network, 'inference')[-1]
    parameters = sum(p.numel() for p in models.get(network, form).parameters())
    return {'parameters': parameters, 'top1': network.top1, 'source': network.source}
