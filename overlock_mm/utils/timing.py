"""How long a call takes. On a GPU the card's time, and apart from it that of launching."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Larger than the caches of all cards, so that a run finds its tensors in memory, as in a network.
FLUSH_BYTES = 256 << 20
#: Calls on a GPU before the clock counts, and calls whose launching is timed.
WARM_UP = 2
LAUNCHES = 3


@dataclass(frozen=True)
class Times:
    """What was measured of a call.

    Attributes:
        seconds: Of each run. On a CPU wall time; on a GPU between two events, around the replay
            of a captured graph, or around the call itself, whose launching then counts.
        launch: Median of the seconds until the call returns to Python without waiting for the
            card; None on a CPU.
        captured: Whether a graph was replayed.
        not_captured: Why the call could not be captured, where that was tried.
    """

    seconds: tuple[float, ...]
    launch: float | None = None
    captured: bool = False
    not_captured: str = ''


def time_runs(
    function: Callable[[], object],
    device: torch.device,
    runs: tuple[int, int] = (3, 50),
    budget: float = 0.0,
    capture: bool = True,
) -> Times:
    """Call a function, or replay it, again and again.

    On a GPU the caches are flushed before each run.

    Args:
        function: The call.
        device: Where it runs.
        runs: The fewest, and the most at which to stop before the budget is spent.
        budget: Seconds to spend on runs beyond the fewest.
        capture: On a GPU: replay a captured graph where the call can be captured.
    """
    if device.type != 'cuda':
        function()
        return Times(_repeated(lambda: _seconds(function), runs, budget))
    with torch.cuda.device(device):
        return _time_on_card(function, runs, budget, capture)


def _repeated(once: Callable[[], float], runs: tuple[int, int], budget: float) -> tuple[float, ...]:
    fewest, most = runs
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < fewest or (time.perf_counter() - started < budget and len(times) < most):
        times.append(once())
    return tuple(times)


def _seconds(function: Callable[[], object]) -> float:
    before = time.perf_counter()
    function()
    return time.perf_counter() - before


def _time_on_card(
    function: Callable[[], object], runs: tuple[int, int], budget: float, capture: bool
) -> Times:
    current = torch.cuda.current_stream()
    # What is captured must have run on another stream than the default one before.
    stream = torch.cuda.Stream() if capture else current
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    current.wait_stream(stream)

    launches = []
    for _ in range(LAUNCHES):
        torch.cuda.synchronize()
        launches.append(_seconds(function))
    torch.cuda.synchronize()

    run, reason = function, ''
    if capture:
        try:
            run = _captured(function)
        except RuntimeError as error:  # the call waits for the card, or a second one does not fit
            # The end of a capture that has failed raises another error.
            reason = ' '.join(str(error.__context__ or error).split())[:200]
    captured = run is not function
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device='cuda')

    def once() -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        if not captured:
            torch.cuda.synchronize()  # launching must not be hidden behind the flush
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3

    once()
    seconds = _repeated(once, runs, budget)
    return Times(seconds, statistics.median(launches), captured, reason)


def _captured(function: Callable[[], object]) -> Callable[[], None]:
    """The replay of a call's graph, which has memory of its own."""
    graph = torch.cuda.CUDAGraph()
    # The outer stream, because a capture that fails leaves its own one behind.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        function()
    return graph.replay
