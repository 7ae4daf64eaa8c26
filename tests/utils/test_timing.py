"""Times of a call, on the CPU and on a card of which only the order of events is known."""

from contextlib import nullcontext

import pytest
import torch

from overlock_mm.utils import timing
from overlock_mm.utils.timing import time_runs

CPU = torch.device('cpu')


def test_runs_end_with_the_budget_or_at_the_most():
    calls = []
    times = time_runs(lambda: calls.append(0), CPU, runs=(3, 5), budget=60)
    assert len(times.seconds) == 5 and len(calls) == 6
    assert len(time_runs(lambda: None, CPU, runs=(3, 5)).seconds) == 3
    assert times.launch is None and not times.captured


class Card:
    """Stands for torch.cuda; what is captured is recorded too, with its stream."""

    def __init__(self, fails=False):
        self.log, self.fails = [], fails
        self.streams = ['default']

    def device(self, device):
        return nullcontext()

    def current_stream(self):
        return Stream(self, self.streams[-1])

    def Stream(self):  # noqa: N802
        return Stream(self, 'side')

    def stream(self, stream):
        return On(self, stream.name)

    def synchronize(self):
        self.log.append('synchronize')

    def CUDAGraph(self):  # noqa: N802
        return Graph(self)

    def graph(self, graph):
        return Capture(self)

    def Event(self, enable_timing):  # noqa: N802
        return Event(self)


class Stream:
    def __init__(self, card, name):
        self.card, self.name = card, name

    def wait_stream(self, other):
        self.card.log.append(f'{self.name} waits for {other.name}')


class On:
    def __init__(self, card, name):
        self.card, self.name = card, name

    def __enter__(self):
        self.before = list(self.card.streams)
        self.card.streams.append(self.name)

    def __exit__(self, *_):
        self.card.streams[:] = self.before


class Capture(On):
    """As torch's, which leaves its stream in place where the end of the capture raises."""

    def __init__(self, card):
        super().__init__(card, 'capture')

    def __exit__(self, *error):
        if self.card.fails:
            raise RuntimeError('operation failed due to a previous error during capture')
        super().__exit__()


class Graph:
    def __init__(self, card):
        self.card = card

    def replay(self):
        self.card.log.append('replay')


class Event:
    def __init__(self, card):
        self.card = card

    def record(self):
        self.card.log.append('event')

    def synchronize(self):
        self.card.log.append('wait')

    def elapsed_time(self, other):
        return 2.0


def measured(monkeypatch, capture=True, fails=False):
    card = Card(fails)

    class Buffer:
        def zero_(self):
            card.log.append('flush')

    def call():
        card.log.append(f'call on {card.streams[-1]}')
        if fails and card.streams[-1] == 'capture':
            raise RuntimeError('a synchronisation')

    monkeypatch.setattr(timing.torch, 'cuda', card)
    monkeypatch.setattr(timing.torch, 'empty', lambda *_, **__: Buffer())
    return time_runs(call, torch.device('cuda'), runs=(3, 3), capture=capture), card


def test_a_captured_call_is_replayed_with_flushed_caches(monkeypatch):
    times, card = measured(monkeypatch)
    assert times.captured and times.seconds == (0.002,) * 3
    assert card.log.count('call on side') == timing.WARM_UP
    assert card.log.count('call on default') == timing.LAUNCHES
    assert card.log[-5:] == ['flush', 'event', 'replay', 'event', 'wait']
    assert times.launch >= 0 and card.streams == ['default']


@pytest.mark.parametrize('fails', [True, False])
def test_what_is_not_captured_is_called(fails, monkeypatch):
    times, card = measured(monkeypatch, capture=fails, fails=fails)
    assert not times.captured and 'replay' not in card.log
    assert times.not_captured == ('a synchronisation' if fails else '')
    assert card.log[-6:] == ['flush', 'synchronize', 'event', 'call on default', 'event', 'wait']
    assert card.streams == ['default']
