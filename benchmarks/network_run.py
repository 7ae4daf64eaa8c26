"""Measures whole networks on the CPU, all of a case in turns, and stores the result as JSON."""

from __future__ import annotations

import logging
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.network_candidates import Candidate, candidate
from benchmarks.networks import (
    MAIN,
    NETWORKS,
    Network,
    NetworkCase,
    all_cases,
    forms,
    name_in_form,
)
from benchmarks.runtimes import EAGER, PRECISIONS, RUNTIMES, Work
from benchmarks.stored import RESULTS, earlier, path_of
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


def candidates_of(
    case: NetworkCase, networks: Sequence[Network], models: Models, folder: Path, pattern: str
) -> dict[str, Candidate]:
    """All that can run the case; what cannot is left out, and logged."""
    candidates: dict[str, Candidate] = {}
    in_runtimes = case.mode == 'inference'
    for network in networks:
        *others, last = forms(network, case.mode)
        for form in others if in_runtimes else (*others, last):
            entry = _tried(
                name_in_form(network, form),
                partial(candidate, models.get(network, form), case),
            )
            if entry is not None:
                candidates[name_in_form(network, form)] = entry
        if in_runtimes:
            candidates |= _in_runtimes(case, network, last, models, folder, pattern)
    return candidates


def _in_runtimes(
    case: NetworkCase, network: Network, form: str, models: Models, folder: Path, pattern: str
) -> dict[str, Candidate]:
    """The network in every runtime and precision."""
    candidates = {}
    for precision in PRECISIONS:
        layout = None
        for runtime in RUNTIMES:
            wanted = runtime is EAGER or re.search(pattern, runtime.name)
            sensible = precision in runtime.precisions and (runtime.for_ours or not network.ours)
            if not (wanted and sensible):
                continue
            name = ', '.join((name_in_form(network, form), runtime.name, precision))
            models_of = (models.get(network, form, precision), models.get(network, form))
            entry = _tried(
                name, partial(runtime.make, Work(*models_of, case, precision, layout, folder))
            )
            if entry is not None:
                entry.runtime, entry.precision = runtime.name, precision
                candidates[name] = entry
                layout = entry.layout if runtime is EAGER else layout
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
) -> Path:
    """Measure the selected cases; the path of the results file.

    Args:
        select: 'main' for the cases of :data:`MAIN`, 'all' for the whole registry.
        pattern: Regular expression for names of cases.
        network_pattern: Regular expression for names of networks.
        budget: Seconds per case for the rounds beyond the third.
        results: Folder for the file.
        runtimes: Regular expression for names of runtimes beside eager mode.
        clock: A key of :data:`CLOCKS`.

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
    machine = {**measure.machine(CPU, (torch.float32,)), 'clock': clock}
    path = path_of(results, machine, 'networks-cpu')
    models, done = Models(), []
    # Cases may be measured in several runs; the networks of a case are measured in one.
    before = earlier(path, machine, ('date', 'device', 'threads', 'versions', 'clock'))

    def store() -> None:
        """What there is so far: a run that is stopped loses one case."""
        results = {entry['case']['name']: entry for entry in before.get('results', [])}
        for case, _, measured in done:
            entry = {'case': {**case.as_dict(), 'name': case.name}, 'candidates': measured}
            results[case.name] = entry
        facts = {network.name: _facts(network, models) for network in networks}
        content = {
            'machine': machine,
            'networks': {**before.get('networks', {}), **facts},
            'results': [results[case.name] for case in all_cases('cpu') if case.name in results],
        }
        write_json(path, content)

    with tempfile.TemporaryDirectory() as folder:
        for case in wanted:
            logger.info('%s', case.name)
            entries = candidates_of(case, networks, models, Path(folder), runtimes)
            time_in_turns(entries, budget, CLOCKS[clock])
            measured = {name: summary(name, entry, case) for name, entry in entries.items()}
            for name, values in measured.items():
                logger.info('  %-60s %9.1f ms', name, values['median_ms'])
            done.append((case, entries, measured))
            store()
        measure.return_freed_memory()  # slows allocation: after the last time
        for case, entries, measured in done:
            for name, entry in entries.items():
                if entry.traceable:
                    entry.prepare()
                    measured[name]['peak_extra_bytes'] = measure.peak_extra_memory(entry.call, CPU)
            logger.info('%s: memory', case.name)
            store()
    return path


def _facts(network: Network, models: Models) -> dict[str, Any]:
    form = forms(network, 'inference')[-1]
    parameters = sum(p.numel() for p in models.get(network, form).parameters())
    return {'parameters': parameters, 'top1': network.top1, 'source': network.source}
