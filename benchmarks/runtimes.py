"""Runtimes in which a user can run a network on the CPU without changing it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.network_candidates import PRECISIONS, Candidate, candidate
from benchmarks.networks import LAYOUTS, NetworkCase
from overlock_mm import OverLoCK
from overlock_mm.export import export_onnx, exportable


@dataclass(frozen=True)
class Work:
    """A network to be run on the images of a case.

    Attributes:
        model: In evaluation mode and in the precision in which it runs.
        exported: The same in float32, for runtimes that read files and convert numbers themselves.
        case: The images.
        precision: A key of :data:`PRECISIONS`.
        layout: A key of ``LAYOUTS``: the faster memory layout in eager mode, None if not known.
        folder: Where exported files are kept for the other runtimes that read them.
    """

    model: nn.Module
    exported: nn.Module
    case: NetworkCase
    precision: str
    layout: str | None
    folder: Path

    def image(self) -> Tensor:
        """The images in the precision of the model."""
        return self.case.image(torch.device('cpu')).to(PRECISIONS[self.precision])


@dataclass(frozen=True)
class Runtime:
    """How to run a network.

    Attributes:
        name: As the tables call it.
        make: Makes a candidate; raises what the runtime raises if it cannot run the network.
        precisions: Those that it runs in.
        for_ours: Whether it makes a difference to OverLoCK.
    """

    name: str
    make: Callable[[Work], Candidate]
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    for_ours: bool = True


def _onednn(work: Work) -> Candidate:
    """Eager mode with oneDNN's matrix products, as OverLoCK's fused form has them."""
    entry = candidate(work.model, work.case, work.precision, work.layout)
    call = entry.call

    def with_onednn() -> object:
        with mock.patch.object(F, 'linear', _linear):
            return call()

    entry.call = with_onednn
    return entry


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


def _compiled(work: Work) -> Candidate:
    layout = work.layout or 'channels_last'
    model = deepcopy(work.model).to(memory_format=LAYOUTS[layout])
    image = work.image().to(memory_format=LAYOUTS[layout])
    compiled = torch.compile(model, dynamic=False, fullgraph=True, options={'freezing': True})

    def call() -> object:
        with torch.no_grad():
            return compiled(image)

    return Candidate(call, layout, lambda: None)


def _onnx_file(work: Work) -> Path:
    image = work.case.image(torch.device('cpu'))
    batch, _, height, width = image.shape
    path = work.folder / f'{id(work.exported)}-{batch}-{height}x{width}.onnx'
    if path.is_file():
        pass
    elif isinstance(work.exported, OverLoCK):
        export_onnx(exportable(work.exported), path, (height, width), compare=False)
    else:
        torch.onnx.export(
            work.exported, (image,), path, dynamo=True, verbose=False, external_data=False
        )
    return path


def _onnx_runtime(work: Work) -> Candidate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would wait for work at full speed while the next candidate runs.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(
        str(_onnx_file(work)), options, providers=['CPUExecutionProvider']
    )
    feed = {session.get_inputs()[0].name: work.image().numpy()}
    return Candidate(lambda: session.run(None, feed), 'its own', lambda: None)


def _openvino(work: Work) -> Candidate:
    import openvino

    model = openvino.Core().read_model(_onnx_file(work))
    image = work.case.image(torch.device('cpu'))
    model.reshape(list(image.shape))
    settings = {
        'INFERENCE_PRECISION_HINT': {'float32': 'f32', 'bfloat16': 'bf16'}[work.precision],
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
    }
    request = openvino.Core().compile_model(model, 'CPU', settings).create_infer_request()
    inputs = [image.numpy()]
    return Candidate(
        lambda: request.infer(inputs, share_inputs=True, share_outputs=True),
        'its own',
        lambda: None,
    )


#: Those beside eager mode.
RUNTIMES = (
    Runtime('eager with oneDNN products', _onednn, ('float32',), for_ours=False),
    Runtime('torch.compile', _compiled),
    Runtime('ONNX Runtime', _onnx_runtime, ('float32',)),
    Runtime('OpenVINO', _openvino),
)
