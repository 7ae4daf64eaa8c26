"""Devices of the runtimes: one that is not there is refused, and what is there is named."""

import sys
from types import SimpleNamespace

import pytest

from overlock_mm import Predictor
from overlock_mm.runtime import ModelFileError
from overlock_mm.runtime.engines import OnnxEngine, OpenVinoEngine


def onnxruntime_with(available, started):
    """ONNX Runtime, as far as an engine looks at it before it reads a file's metadata."""
    session = SimpleNamespace(get_providers=lambda: started)
    return SimpleNamespace(
        __spec__=object(),
        SessionOptions=SimpleNamespace,
        get_available_providers=lambda: available,
        InferenceSession=lambda *args, **kwargs: session,
    )


@pytest.mark.parametrize(
    ('available', 'device', 'words'),
    (
        (['CPUExecutionProvider'], 'cuda', 'has no CUDA .* only CPUExecutionProvider'),
        # It says that it has CUDA, and starts without.
        (['CUDAExecutionProvider', 'CPUExecutionProvider'], 'cuda:3', "on device='cuda:3'"),
        (['CPUExecutionProvider'], 'gpu', "'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (['CPUExecutionProvider'], 'cuda:x', "got 'cuda:x'"),
    ),
)
def test_onnx_runtime_computes_where_it_is_told(available, device, words, monkeypatch, tmp_path):
    fake = onnxruntime_with(available, ['CPUExecutionProvider'])
    monkeypatch.setitem(sys.modules, 'onnxruntime', fake)
    with pytest.raises(ModelFileError, match=words):
        OnnxEngine(tmp_path / 'model.onnx', device)


@pytest.mark.parametrize(
    ('device', 'words'),
    (
        ('gpu', "no device 'gpu' here, only CPU, NPU.0"),
        ('cuda', "NVIDIA's GPUs are used by ONNX Runtime"),
    ),
)
def test_devices_of_openvino(device, words, monkeypatch, tmp_path):
    core = SimpleNamespace(available_devices=['CPU', 'NPU.0'], read_model=SimpleNamespace)
    fake = SimpleNamespace(__spec__=object(), Core=lambda: core)
    monkeypatch.setitem(sys.modules, 'openvino', fake)
    with pytest.raises(ModelFileError, match=words):
        OpenVinoEngine(tmp_path / 'model.onnx', device)
    for there in ('cpu', 'npu', 'NPU.0', 'auto:cpu,npu'):
        with pytest.raises(TypeError, match='positional argument'):  # from read_model
            OpenVinoEngine(tmp_path / 'model.onnx', there)


@pytest.mark.parametrize('device', ('cuda:99', 'quantum'))
def test_devices_of_pytorch(device):
    with pytest.raises(ValueError, match=f"device='{device}' here .* It has 'cpu'"):
        Predictor('config.py', 'weights.pth', device=device)
