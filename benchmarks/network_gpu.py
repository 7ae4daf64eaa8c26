"""Measures whole networks on a GPU, cell by cell, and stores each as JSON.

A cell is a network in a form on the images of a case, in eager mode or compiled. In inference it
gives two times: as called from Python, and as the replay of a CUDA graph.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, tiers
from benchmarks.cells import Deadline, check_device, compiling, measured
from benchmarks.networks import (
    GPU_NETWORKS,
    LAYOUTS,
    SAVINGS,
    Network,
    NetworkCase,
    all_cases,
    forms,
    name_in_form,
)
from benchmarks.stored import RESULTS, earlier, path_of, sources
from overlock_mm.utils.files import write_json
from overlock_mm.utils.timing import time_runs

logger = logging.getLogger('benchmarks')

EAGER, COMPILED = 'eager', 'torch.compile'
GRAPH = ', CUDA graph'
#: Weights and images in bfloat16; or weights in float32, as in training.
BFLOAT16, AUTOCAST = 'bfloat16', 'autocast to bfloat16'
#: Most runs of a call.
RUNS = 50
#: How the compiled contestants save memory in training: not, as the compiler decides by itself.
COMPILED_SAVINGS = ('', 'recompute none', 'with_cp off')


@dataclass(frozen=True)
class Contestant:
    """A network as it takes part in a case.

    Attributes:
        network: Which.
        form: One of its forms.
        saving: In training, how it saves memory: a key of :data:`SAVINGS`, or empty.
    """

    network: Network
    form: str
    saving: str = ''

    @property
    def name(self) -> str:
        """As in the tables."""
        name = name_in_form(self.network, self.form)
        return f'{name}, {self.saving}' if self.saving else name

    def build(self) -> nn.Module:
        """Make the network."""
        torch.manual_seed(0)
        model = self.network.build(**(SAVINGS[self.saving] if self.saving else {}))
        if self.form != 'training':
            model.eval()
            model.switch_to_deploy()
        return model


def contestants(network: Network, mode: str) -> Iterator[Contestant]:
    """The forms of a network, the fastest first; in training, all ways of saving memory."""
    for form in reversed(forms(network, mode)):
        if mode == 'inference':
            yield Contestant(network, form)
        else:
            of_kind = (name for name in SAVINGS if name.startswith('recompute') == network.ours)
            yield from (Contestant(network, form, saving) for saving in of_kind)


class _Models:
    """Networks, which are built once and copied to the device for each cell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._built: dict[Contestant, nn.Module] = {}

    def get(self, contestant: Contestant, dtype: torch.dtype) -> nn.Module:
        if contestant not in self._built:
            self._built[contestant] = contestant.build()
        return deepcopy(self._built[contestant]).to(self.device, dtype)


def run(
    device: torch.device,
    pattern: str,
    network_pattern: str,
    budget: float,
    deadline: Deadline,
    results: Path = RESULTS,
    tier: int | None = None,
    fresh: bool = False,
) -> Path:
    """Measure the selected cells that are missing; the path of the results file.

    Args:
        device: Where.
        pattern: Regular expression for names of cases.
        network_pattern: Regular expression for names of networks.
        budget: Seconds for each time.
        deadline: Limits of time.
        results: Folder for the file.
        tier: A key of :data:`tiers.TIERS`, or None for all.
        fresh: Measure again what an earlier run has measured.

    Raises:
        RuntimeError: Nothing was selected.
        DeviceLostError: The process can no longer use the card; what was measured is stored.
    """
    pairs = list(product(all_cases('cuda'), GPU_NETWORKS))
    if tier is not None:
        labels = [f'{network.name} {case.name}' for case, network in pairs]
        pairs = tiers.selected(pairs, labels, tier, 'networks')
    work = [
        (compiled, case, contestant)
        for compiled in (False, True)
        for case, network in pairs
        if re.search(pattern, case.name) and re.search(network_pattern, network.name)
        for contestant in contestants(network, case.mode)
        if not compiled or contestant.saving in COMPILED_SAVINGS
    ]
    if not work:
        raise RuntimeError(f'Nothing to measure: cases {pattern!r}, networks {network_pattern!r}.')
    table = _Table(device, results, fresh)
    models = _Models(device)
    for compiled, case, contestant in work:
        if deadline.is_over():
            logger.info('The time is over. The same command resumes where this one ended.')
            break
        if not table.has(case, contestant, compiled):
            _measure(table, models, case, contestant, compiled, budget, deadline)
    return table.path


class _Table:
    """The results file of a device, as it grows."""

    def __init__(self, device: torch.device, folder: Path, fresh: bool) -> None:
        self.machine = {**measure.identity(device), 'sources': sources()}
        self.path = path_of(folder, self.machine, 'networks-gpu')
        same = ('device', 'versions', 'sources')
        kept = {} if fresh else earlier(self.path, self.machine, same)
        self.machine = kept.get('machine', self.machine)
        self.networks: dict[str, Any] = kept.get('networks', {})
        self.results: dict[str, Any] = {r['case']['name']: r for r in kept.get('results', [])}
        logger.info('%s', json.dumps(self.machine))

    def has(self, case: NetworkCase, contestant: Contestant, compiled: bool) -> bool:
        """Whether the cell was measured."""
        name, _ = _entry(case, contestant, COMPILED if compiled else EAGER)
        return name in self.results.get(case.name, {}).get('candidates', {})

    def layout(self, case: NetworkCase, contestant: Contestant) -> str | None:
        """The layout that was faster in eager mode, if that is known."""
        name, _ = _entry(case, contestant, EAGER)
        return self.results.get(case.name, {}).get('candidates', {}).get(name, {}).get('layout')

    def add(self, case: NetworkCase, entries: dict[str, Any]) -> None:
        """Store the entries of a cell."""
        result = self.results.setdefault(
            case.name, {'case': {**case.as_dict(), 'name': case.name}, 'candidates': {}}
        )
        result['candidates'] |= entries
        known = [self.results[c.name] for c in all_cases('cuda') if c.name in self.results]
        write_json(
            self.path, {'machine': self.machine, 'networks': self.networks, 'results': known}
        )


def _entry(case: NetworkCase, contestant: Contestant, runtime: str) -> tuple[str, dict[str, str]]:
    """Key of an entry, and what it says about itself."""
    precision = _precision(case, contestant.network)
    facts = {'of': contestant.name, 'runtime': runtime, 'precision': precision}
    return ', '.join(facts.values()), facts


def _precision(case: NetworkCase, network: Network) -> str:
    return AUTOCAST if case.mode == 'training' or network.needs_autocast else BFLOAT16


def _measure(
    table: _Table,
    models: _Models,
    case: NetworkCase,
    contestant: Contestant,
    compiled: bool,
    budget: float,
    deadline: Deadline,
) -> None:
    runtime = COMPILED if compiled else EAGER
    name, facts = _entry(case, contestant, runtime)
    logger.info('%s: %s', case.name, name)
    network = contestant.network
    table.networks.setdefault(network.name, {'top1': network.top1, 'source': network.source})

    def cell() -> dict[str, Any]:
        dtype = torch.bfloat16 if facts['precision'] == BFLOAT16 else torch.float32
        model = models.get(contestant, dtype)
        if contestant.form == forms(network, 'inference')[-1]:
            parameters = sum(p.numel() for p in model.parameters())
            table.networks[network.name]['parameters'] = parameters
        return _times(model, case, models.device, table.layout(case, contestant), compiled, budget)

    times = measured(name, cell, deadline)
    if times is None:
        return
    entries = {name: facts | times.pop(runtime, times)}
    for other, values in times.items() if 'not_measured' not in times else ():
        key, about = _entry(case, contestant, other)
        entries[key] = about | values
    for entry in entries.values():
        if 'median_ms' in entry:
            entry['images_per_s'] = 1e3 * case.batch / entry['median_ms']
            logger.info('  %-30s %9.3f ms', entry['runtime'], entry['median_ms'])
    table.add(case, entries)
    check_device(models.device)


def _times(
    model: nn.Module,
    case: NetworkCase,
    device: torch.device,
    layout: str | None,
    compiled: bool,
    budget: float,
) -> dict[str, Any]:
    """The values of a cell, by runtime."""
    make = _training_step if case.mode == 'training' else _inference
    image = case.image(device)
    if layout is None:
        layout = min(LAYOUTS, key=lambda name: _quick(make(model, image, name), device))
    with compiling() if compiled else nullcontext():
        call = make(model, image, layout, compiled)
        runtime = COMPILED if compiled else EAGER
        time_of = partial(measure.time_of, call, device, budget, RUNS)
        values = {**time_of(capture=False), 'layout': layout}
        values['peak_extra_bytes'] = measure.peak_extra_memory(call, device)
        entries = {runtime: values}
        if case.mode == 'inference' and device.type == 'cuda':
            graph = {**time_of(capture=True), 'layout': layout}
            del graph['launch_ms']  # that of the call
            why = graph.get('not_captured')
            entries[runtime + GRAPH] = {'not_measured': why} if why else graph
    return entries


def _quick(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, to choose a layout."""
    return min(time_runs(call, device, runs=(3, 3), capture=False).seconds)


def _inference(
    model: nn.Module, image: Tensor, layout: str, compiled: bool = False
) -> Callable[[], object]:
    model.eval()  # mmpretrain's backbones do not return themselves
    model.to(memory_format=LAYOUTS[layout])
    dtype = next(model.parameters()).dtype
    image = image.to(dtype).to(memory_format=LAYOUTS[layout])
    function = torch.compile(model, dynamic=False) if compiled else model

    def call() -> object:
        with torch.no_grad(), _autocast(image.device, dtype):
            return function(image)

    return call


def _training_step(
    model: nn.Module, image: Tensor, layout: str, compiled: bool = False
) -> Callable[[], object]:
    """Forward and backward; the optimizer's step is the same for all."""
    model.train()
    model.to(memory_format=LAYOUTS[layout])
    image = image.to(memory_format=LAYOUTS[layout])
    function = torch.compile(model, dynamic=False) if compiled else model
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call() -> object:
        with _autocast(image.device, torch.float32):
            loss = sum(x.float().square().mean() for x in function(image))
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return call


def _autocast(device: torch.device, weights: torch.dtype) -> torch.autocast:
    """Autocast to bfloat16, unless the weights have it already."""
    return torch.autocast(device.type, torch.bfloat16, enabled=weights == torch.float32)
