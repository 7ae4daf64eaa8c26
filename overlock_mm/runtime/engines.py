"""Runtimes that run exported files: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from overlock_mm.runtime.description import KEY, ModelDescription, ModelFileError


class Engine(Protocol):
    """A loaded file."""

    description: ModelDescription

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by their names."""


class OnnxEngine:
    """ONNX Runtime.

    Args:
        path: An ``.onnx`` file.
        device: ``'cpu'`` or ``'cuda'``, with a number behind a colon for one of several.
        threads: How many; None leaves it to the runtime.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ModelFileError: The file or the device cannot be used.
    """

    def __init__(self, path: Path, device: str, threads: int | None = None) -> None:
        if importlib.util.find_spec('onnxruntime') is None:
            raise ImportError(
                f'{path} runs in ONNX Runtime, which is not installed. Remedy: '
                'pip install onnxruntime (or onnxruntime-gpu), or overlock_mm[runtime].'
            )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        kind, _, number = device.partition(':')
        providers: list[Any] = ['CPUExecutionProvider']
        if kind == 'cuda':
            if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
                raise ModelFileError(
                    f'This ONNX Runtime has no CUDA (device={device!r}). Remedy: '
                    'pip install onnxruntime-gpu in place of onnxruntime.'
                )
            providers.insert(0, ('CUDAExecutionProvider', {'device_id': int(number or 0)}))
        elif kind != 'cpu':
            raise ModelFileError(
                f"ONNX Runtime's devices are 'cpu' and 'cuda' here, got {device!r}."
            )
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        # Its own classes of errors have no common name in Python.
        except Exception as error:
            raise ModelFileError(
                f'{path} cannot be loaded by ONNX Runtime: it is damaged, or needs a newer one '
                f'({str(error).splitlines()[0]}).'
            ) from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.description = ModelDescription.from_metadata(metadata, str(path))
        self._names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by their names."""
        return dict(zip(self._names, self.session.run(None, dict(inputs)), strict=True))


class OpenVinoEngine:
    """OpenVINO.

    Args:
        path: An ``.xml`` or an ``.onnx`` file.
        device: One of OpenVINO's, such as ``'cpu'``, ``'gpu'`` or ``'auto'``.
        threads: How many; None leaves it to the runtime.
        precision: ``'f32'``, or ``'bf16'`` or ``'f16'`` on devices that have it.

    Raises:
        ImportError: OpenVINO is not installed.
        ModelFileError: The file or the device cannot be used.
    """

    def __init__(
        self, path: Path, device: str, threads: int | None = None, precision: str = 'f32'
    ) -> None:
        if importlib.util.find_spec('openvino') is None:
            raise ImportError(
                f'{path} runs in OpenVINO, which is not installed. Remedy: pip install openvino.'
            )
        import openvino

        core = openvino.Core()
        options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': precision}
        if threads is not None:
            options['INFERENCE_NUM_THREADS'] = threads
        try:
            model = core.read_model(str(path))
            self.compiled = core.compile_model(model, device.upper(), options)
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line and 'src/' not in line]
            raise ModelFileError(
                f'{path} cannot be loaded by OpenVINO on {device!r} ({" ".join(lines[:1])}).'
            ) from error
        metadata = {}
        # Where the ONNX reader and where `ovc` keep the metadata of the ONNX file.
        for place in (['framework', KEY], [KEY]):
            if model.has_rt_info(place):
                metadata[KEY] = str(model.get_rt_info(place).value)
        self.description = ModelDescription.from_metadata(metadata, str(path))
        self._outputs = [(next(iter(o.names)), o) for o in self.compiled.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by their names."""
        results = self.compiled(dict(inputs))
        return {name: results[output] for name, output in self._outputs}


def load_engine(
    path: Path,
    device: str,
    threads: int | None,
    engine: str | None,
    precision: str | None,
) -> Engine:
    """The engine for a file.

    Args:
        path: The file.
        device: Device of the engine.
        threads: How many; None leaves it to the runtime.
        engine: ``'onnxruntime'`` or ``'openvino'``; None goes by the suffix.
        precision: Precision of OpenVINO's computation.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The engine is not installed.
        ModelFileError: The file cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f'There is no model file at {path}.')
    if path.suffix not in ('.onnx', '.xml'):
        raise ModelFileError(
            f'{path} is neither an .onnx nor an .xml file. A checkpoint is run with its config: '
            'Predictor(config, weights).'
        )
    if engine is None:
        only_openvino = importlib.util.find_spec('onnxruntime') is None and (
            importlib.util.find_spec('openvino') is not None
        )
        engine = 'openvino' if path.suffix == '.xml' or only_openvino else 'onnxruntime'
    if engine not in ('onnxruntime', 'openvino'):
        raise ValueError(f"engine is 'onnxruntime' or 'openvino', got {engine!r}.")
    if engine == 'openvino':
        return OpenVinoEngine(path, device, threads, precision or 'f32')
    if precision is not None:
        raise ValueError(
            f'ONNX Runtime computes a file in its own precision, not in {precision!r}. Export it '
            "with --precision, or use engine='openvino'."
        )
    return OnnxEngine(path, device, threads)
