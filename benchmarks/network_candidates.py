"""Networks as calls that can be timed on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.networks import LAYOUTS, NetworkCase

EAGER = 'eager'
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@dataclass
class Candidate:
    """A call and what was measured of it.

    Attributes:
        call: Runs the case once.
        layout: Memory layout in which it runs.
        prepare: Brings the network into the mode and layout of the case; to be called when
            another case may have changed them.
        seconds: Wall times.
        runtime: What runs it.
        precision: Dtype of the network.
    """

    call: Callable[[], object]
    layout: str
    prepare: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    runtime: str = EAGER
    precision: str = 'float32'


def candidate(
    model: nn.Module, case: NetworkCase, precision: str = 'float32', layout: str | None = None
) -> Candidate:
    """The network on the case's images in eager mode.

    Args:
        model: The network, in the precision.
        case: What it does.
        precision: A key of :data:`PRECISIONS`, for the images.
        layout: A key of ``LAYOUTS``; None for the one in which the network is faster.
    """
    make = _training_step if case.mode == 'training' else _inference
    image = case.image(torch.device('cpu')).to(PRECISIONS[precision])
    candidates = [make(model, image, name) for name in LAYOUTS if layout in (None, name)]
    best = min(candidates, key=_seconds) if layout is None else candidates[0]
    best.prepare()
    return best


def _seconds(candidate: Candidate) -> float:
    """The shortest of four calls, or of as many as begin within a second."""
    candidate.prepare()
    taken: list[float] = []
    while len(taken) < 4 and sum(taken) < 1:
        before = time.perf_counter()
        candidate.call()
        taken.append(time.perf_counter() - before)
    return min(taken)


def _inference(model: nn.Module, image: Tensor, layout: str) -> Candidate:
    image = image.to(memory_format=LAYOUTS[layout])

    def call() -> object:
        with torch.inference_mode():
            return model(image)

    def prepare() -> None:
        model.eval()  # mmpretrain's backbones do not return themselves
        model.to(memory_format=LAYOUTS[layout])

    return Candidate(call, layout, prepare)


def _training_step(model: nn.Module, image: Tensor, layout: str) -> Candidate:
    image = image.to(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def call() -> object:
        loss = sum(x.float().square().mean() for x in model(image))
        loss.backward()
        optimizer.step()
        return optimizer.zero_grad()

    def prepare() -> None:
        model.train()
        model.to(memory_format=LAYOUTS[layout])

    return Candidate(call, layout, prepare)
