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
        providers = _providers(onnxruntime, device)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        # Its own classes of errors have no common name in Python.
        except Exception as error:
            reason, *_ = str(error).split('\n')  # it can be empty
            raise ModelFileError(
                f'{path} cannot be loaded by ONNX Runtime: it is damaged, or needs a newer one '
                f'({reason}).'
            ) from error
        first = providers[0][0]
        if first not in self.session.get_providers():
            # ONNX Runtime would use the CPU, and only write that to its log.
            raise ModelFileError(
                f'ONNX Runtime has {first}, but cannot start it on device={device!r}: there is no '
                'such GPU, or the libraries of CUDA and cuDNN are not found. Remedy: '
                "pip install 'onnxruntime-gpu[cuda,cudnn]', or device='cpu'."
            )
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
        _check_openvino_device(core.available_devices, device)
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


#: By the suffix of a file that cannot be run.
_REMEDIES = {
    '.bin': 'Give the .xml file beside it.',
    '.pt2': 'torch.export.load reads it (docs/export.md); Predictor takes the .onnx file.',
}
#: Devices of OpenVINO that stand for others.
_OPENVINO_GROUPS = ('AUTO', 'BATCH', 'HETERO', 'MULTI')


def _providers(onnxruntime: Any, device: str) -> list[tuple[str, dict[str, Any]]]:
    """What ONNX Runtime computes a device's operators with, by preference."""
    providers: list[tuple[str, dict[str, Any]]] = [('CPUExecutionProvider', {})]
    kind, _, number = device.partition(':')
    if device != 'cpu' and (kind != 'cuda' or not (number or '0').isdigit()):
        raise ModelFileError(
            f"With ONNX Runtime, device is 'cpu', 'cuda' or 'cuda:N', got {device!r}."
        )
    if kind == 'cuda':
        available = onnxruntime.get_available_providers()
        if 'CUDAExecutionProvider' not in available:
            raise ModelFileError(
                f'This ONNX Runtime has no CUDA for device={device!r}, only '
                f'{", ".join(available)}. Remedy: pip uninstall onnxruntime, then '
                'pip install onnxruntime-gpu.'
            )
        # Finds the libraries of pip's CUDA packages; ONNX Runtime has it from 1.21 on.
        if hasattr(onnxruntime, 'preload_dlls'):
            onnxruntime.preload_dlls()
        providers.insert(0, ('CUDAExecutionProvider', {'device_id': int(number or 0)}))
    return providers


def _check_openvino_device(available: list[str], device: str) -> None:
    name = device.upper()
    # Both 'GPU' and 'GPU.0' mean the first of several.
    known = {part for each in available for part in (each, each.partition('.')[0])}
    if name.partition(':')[0] in _OPENVINO_GROUPS or name in known or f'{name}.0' in known:
        return
    nvidia = (
        " NVIDIA's GPUs are used by ONNX Runtime, with an .onnx file." if 'CUDA' in name else ''
    )
    raise ModelFileError(
        f'OpenVINO has no device {device!r} here, only {", ".join(sorted(available))}.{nvidia}'
    )


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
        kind = 'a folder' if path.is_dir() else 'not there'
        raise FileNotFoundError(f'The model file {path} is {kind}.')
    if path.suffix not in ('.onnx', '.xml'):
        remedy = _REMEDIES.get(
            path.suffix, 'A checkpoint is run with its config: Predictor(config, weights).'
        )
        raise ModelFileError(f'{path} is neither an .onnx nor an .xml file. {remedy}')
    if path.suffix == '.xml' and not path.with_suffix('.bin').is_file():
        raise ModelFileError(
            f'The weights of {path} are missing: {path.stem}.bin belongs into the same folder.'
        )
    if threads is not None and threads < 1:
        raise ValueError(f'threads must be at least 1, or None, got {threads}.')
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
