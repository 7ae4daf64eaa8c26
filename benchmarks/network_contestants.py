"""Networks as calls that can be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.networks import NetworkCase
from overlock_mm.export import export_onnx, exportable

LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}


@dataclass
class Contestant:
    """A call and what was measured of it.

    Attributes:
        call: Runs the case once.
        layout: Memory layout in which it runs.
        prepare: Brings the network into the mode and layout of the case; to be called when
            another case may have changed them.
        seconds: Wall times.
        traceable: Whether the memory of a single call can be measured.
    """

    call: Callable[[], object]
    layout: str
    prepare: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    traceable: bool = True


def contestant(model: nn.Module, case: NetworkCase, device: torch.device) -> Contestant:
    """The network on the case's images, in the memory layout in which it is faster."""
    make = _training_step if case.mode == 'training' else _inference
    candidates = [make(model, case.image(device), layout) for layout in LAYOUTS]
    best = min(candidates, key=lambda candidate: _seconds(candidate, device))
    best.prepare()
    return best


def onnx_contestant(model: nn.Module, case: NetworkCase, folder: Path) -> Contestant:
    """The exported network in ONNX Runtime, with as many threads as torch has.

    Args:
        model: An OverLoCK in fused form.
        case: Its size is the file's.
        folder: Where the file is written; it is kept for further batch sizes.
    """
    import onnxruntime

    shape = (case.height, case.width)
    path = folder / f'{id(model)}-{case.height}x{case.width}.onnx'
    if not path.is_file():
        export_onnx(exportable(model), path, shape, compare=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would wait for work at full speed while the next contestant runs.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    image = case.image(torch.device('cpu')).numpy()
    # ONNX Runtime keeps the memory of a call for the next.
    return Contestant(
        lambda: session.run(None, {'image': image}), 'its own', lambda: None, traceable=False
    )


def _seconds(candidate: Contestant, device: torch.device) -> float:
    """The shortest of four calls, or of as many as begin within a second."""
    candidate.prepare()
    taken: list[float] = []
    while len(taken) < 4 and sum(taken) < 1:
        synchronize(device)
        before = time.perf_counter()
        candidate.call()
        synchronize(device)
        taken.append(time.perf_counter() - before)
    return min(taken)


def _inference(model: nn.Module, image: Tensor, layout: str) -> Contestant:
    image = image.to(memory_format=LAYOUTS[layout])

    def call() -> object:
        with torch.inference_mode(), _precision(image.device):
            return model(image)

    def prepare() -> None:
        model.eval()  # mmpretrain's backbones do not return themselves
        model.to(memory_format=LAYOUTS[layout])

    return Contestant(call, layout, prepare)


def _training_step(model: nn.Module, image: Tensor, layout: str) -> Contestant:
    image = image.to(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def call() -> object:
        with _precision(image.device):
            loss = sum(x.float().square().mean() for x in model(image))
        loss.backward()
        optimizer.step()
        return optimizer.zero_grad()

    def prepare() -> None:
        model.train()
        model.to(memory_format=LAYOUTS[layout])

    return Contestant(call, layout, prepare)


@contextmanager
def _precision(device: torch.device) -> Iterator[None]:
    """float32 on the CPU, autocast to bfloat16 on a GPU."""
    with torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext():
        yield


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
