"""Measures whole networks, all of a case in turns, and stores the result as JSON."""

from __future__ import annotations

import json
import logging
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.network_contestants import (
    Contestant,
    contestant,
    onnx_contestant,
    synchronize,
)
from benchmarks.networks import (
    MAIN,
    NETWORKS,
    Network,
    NetworkCase,
    all_cases,
    contestant_name,
    forms,
)
from benchmarks.run import RESULTS
from overlock_mm.utils.files import write_json

logger = logging.getLogger('benchmarks')

#: Fewest and most rounds of a case, regardless of the budget.
ROUNDS = (3, 20)
#: The network whose exported file is measured beside it.
EXPORTED = 'OverLoCK-T'


class Models:
    """Networks by name and form, built at first use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._built: dict[tuple[str, str], nn.Module] = {}

    def get(self, network: Network, form: str) -> nn.Module:
        """The network in a form, on the device."""
        key = (network.name, form)
        if key not in self._built:
            torch.manual_seed(0)
            model = network.build()
            if form != 'training':
                model.eval()
                model.switch_to_deploy()
            self._built[key] = model.to(self.device)
        return self._built[key]


def contestants_of(
    case: NetworkCase, networks: Sequence[Network], models: Models, folder: Path
) -> dict[str, Contestant]:
    """All that can run the case; what does not fit into memory is left out, and logged."""
    found = {}
    for network in networks:
        for form in forms(network, case.mode):
            name = contestant_name(network, form)
            model = models.get(network, form)
            try:
                found[name] = contestant(model, case, models.device)
            except torch.OutOfMemoryError:
                logger.warning('  %s: not measured, out of memory', name)
                continue
            if network.name == EXPORTED and form == 'fused' and models.device.type == 'cpu':
                found[f'{network.name}, ONNX Runtime'] = onnx_contestant(model, case, folder)
    return found


def time_in_turns(contestants: dict[str, Contestant], device: torch.device, budget: float) -> None:
    """Run each once per round, until the budget in seconds is spent.

    Other activity on the machine then affects all of them equally.
    """
    started = time.perf_counter()
    for round_index in range(ROUNDS[1]):
        if round_index >= ROUNDS[0] and time.perf_counter() - started > budget:
            return
        for entry in contestants.values():
            synchronize(device)
            before = time.perf_counter()
            entry.call()
            synchronize(device)
            entry.seconds.append(time.perf_counter() - before)


def summary(entry: Contestant, case: NetworkCase) -> dict[str, Any]:
    """Median, distance of the quartiles and throughput."""
    low, median, high = statistics.quantiles(entry.seconds, n=4, method='inclusive')
    return {
        'median_ms': median * 1e3,
        'spread_ms': (high - low) * 1e3,
        'runs': len(entry.seconds),
        'images_per_s': case.batch / median,
        'layout': entry.layout,
    }


def run(
    device: torch.device,
    select: str,
    pattern: str,
    network_pattern: str,
    budget: float,
    results: Path = RESULTS,
) -> Path:
    """Measure the selected cases; the path of the results file.

    Args:
        device: Where.
        select: 'main' for the cases of :data:`MAIN`, 'all' for the whole registry.
        pattern: Regular expression for names of cases.
        network_pattern: Regular expression for names of networks.
        budget: Seconds per case for the rounds beyond the third.
        results: Folder for the file.

    Raises:
        RuntimeError: Nothing was selected.
    """
    wanted = [
        case
        for case in all_cases(device.type)
        if (select == 'all' or case.name in MAIN) and re.search(pattern, case.name)
    ]
    networks = [network for network in NETWORKS if re.search(network_pattern, network.name)]
    if not wanted or not networks:
        raise RuntimeError(
            f'Nothing to measure: cases {pattern!r} among {select}, networks {network_pattern!r}.'
        )
    machine = measure.machine(device, (torch.float32,))
    slug = re.sub(r'[^a-z0-9]+', '-', machine['device'].lower()).strip('-')
    path = results / f'networks-{"gpu" if device.type == "cuda" else "cpu"}-{slug}.json'
    models, done = Models(device), []
    earlier = _of_the_same_day(path, machine)

    def store() -> None:
        """What there is so far: a run that is stopped loses one case."""
        results = {entry['case']['name']: entry for entry in earlier.get('results', [])}
        for case, _, measured in done:
            entry = {'case': {**case.as_dict(), 'name': case.name}, 'contestants': measured}
            results[case.name] = entry
        facts = {network.name: _facts(network, models) for network in networks}
        content = {
            'machine': machine,
            'precision': 'float32' if device.type == 'cpu' else 'autocast to bfloat16',
            'networks': {**earlier.get('networks', {}), **facts},
            'results': [
                results[case.name] for case in all_cases(device.type) if case.name in results
            ],
        }
        write_json(path, content)

    with tempfile.TemporaryDirectory() as folder:
        for case in wanted:
            logger.info('%s', case.name)
            entries = contestants_of(case, networks, models, Path(folder))
            time_in_turns(entries, device, budget)
            measured = {name: summary(entry, case) for name, entry in entries.items()}
            for name, values in measured.items():
                logger.info('  %-28s %9.1f ms', name, values['median_ms'])
            done.append((case, entries, measured))
            store()
        measure.return_freed_memory()  # slows allocation: after the last time
        for case, entries, measured in done:
            for name, entry in entries.items():
                if entry.traceable:
                    entry.prepare()
                    measured[name]['peak_extra_bytes'] = measure.peak_extra_memory(
                        entry.call, device
                    )
            logger.info('%s: memory', case.name)
            store()
    return path


def _of_the_same_day(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run measured on this machine, today and with these versions, if anything.

    Cases may be measured in several runs; the networks of a case are measured in one.
    """
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding='utf-8'))
    same = ('date', 'device', 'threads', 'versions')
    return content if all(content['machine'][key] == machine[key] for key in same) else {}


def _facts(network: Network, models: Models) -> dict[str, Any]:
    form = forms(network, 'inference')[-1]
    parameters = sum(p.numel() for p in models.get(network, form).parameters())
    return {'parameters': parameters, 'top1': network.top1, 'source': network.source}
