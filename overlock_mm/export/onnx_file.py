"""Writes a part of a model as an ONNX file and compares the file with the model."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from overlock_mm.export.parts import Exportable
from overlock_mm.export.standard_ops import StandardOperators
from overlock_mm.models.overlock import MIN_IMAGE_SIZE, image_channels
from overlock_mm.utils.files import replacing

#: The first with LayerNormalization, and the last that torch's tracing exporter writes.
OPSETS = range(17, 21)
#: Allowed difference between ONNX Runtime and PyTorch, of the largest value of an output.
TOLERANCE = 1e-4
#: Images with which a graph for all sizes is traced: so small that the resizing of small maps
#: is in the graph, where it does nothing to larger ones.
TRACED_SIZE = (64, 96)
#: (B, H, W) at which a graph for all sizes is compared: below and above the size at which maps
#: are resized, with odd sides, wide and high.
COMPARED_SHAPES = ((1, 224, 224), (2, 75, 130), (1, 333, 250))


class ExportError(RuntimeError):
    """The exported file does not do what the model does."""


def check_request(opset: int, shape: tuple[int, int] | None) -> None:
    """Refuse what cannot be exported, before any work.

    Args:
        opset: Version of the ONNX operators.
        shape: Fixed (H, W), or None for all sizes.

    Raises:
        ValueError: The opset is unknown or the shape too small.
        ImportError: A library is missing.
    """
    if opset not in OPSETS:
        raise ValueError(
            f'The opset must be from {OPSETS[0]}, the first with LayerNormalization, to '
            f'{OPSETS[-1]}, got {opset}.'
        )
    if shape is not None and min(shape) < MIN_IMAGE_SIZE:
        raise ValueError(
            f'Images must have sides of at least {MIN_IMAGE_SIZE} pixels, got '
            f'{shape[0]} x {shape[1]}.'
        )
    missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'Export needs {" and ".join(missing)}, not installed here. '
            f'Remedy: pip install {" ".join(missing)}'
        )


def export_onnx(
    part: Exportable,
    path: str | Path,
    shape: tuple[int, int] | None,
    *,
    opset: int = OPSETS[0],
    metadata: Mapping[str, str] | None = None,
    compare: bool = True,
) -> dict[tuple[int, int, int], float]:
    """Write a part of a model as one ONNX file of standard operators, atomically.

    The batch size is free. The file is put in place after ``onnx.checker`` and, unless it is not
    wanted, the comparison with PyTorch in ONNX Runtime have accepted it.

    Args:
        part: A part, fused where speed counts; it is traced on the CPU in evaluation mode.
        path: The file.
        shape: Fixed (H, W) of the images; None leaves both free, from 32 pixels.
        opset: Version of the ONNX operators, 17 to 20.
        metadata: Further entries for the file's ``metadata_props``.
        compare: Compare with PyTorch at three shapes.

    Returns:
        The largest difference by compared shape (B, H, W), relative to the largest value.

    Raises:
        ValueError: The opset is unknown, or the shape too small or of a size that the model does
            not take.
        ImportError: onnx or onnxruntime is missing.
        ExportError: An output differs by more than 1e-4.
    """
    check_request(opset, shape)
    if shape is not None and any(side % part.size_divisor for side in shape):
        raise ValueError(
            f'This model takes images whose sides are multiples of {part.size_divisor} pixels, got '
            f'{shape[0]} x {shape[1]}.'
        )
    import onnx

    path = Path(path)
    part = part.cpu().float().eval()
    model = onnx.load_from_string(_traced(part, shape, opset))
    size = 'any' if shape is None else f'{shape[0]} x {shape[1]}'
    onnx.helper.set_model_props(
        model, {'task': part.task, 'image_size': size, **({} if metadata is None else metadata)}
    )
    onnx.checker.check_model(model)
    with replacing(path) as partial:
        onnx.save(model, partial)
        differences = _differences(part, partial, shape) if compare else {}
        for compared, difference in differences.items():
            if not difference <= TOLERANCE:  # NaN too
                raise ExportError(
                    f'At {" x ".join(map(str, compared))} (B x H x W) ONNX Runtime differs from '
                    f'PyTorch by {difference:.2g} of the largest value, allowed are {TOLERANCE:g}. '
                    f'{path} was not written.'
                )
    return differences


def _traced(part: Exportable, shape: tuple[int, int] | None, opset: int) -> bytes:
    """The file's content.

    By torch's tracing exporter, which names nodes by their modules. The one behind ``dynamo=True``,
    tried with torch 2.11 on variant T, takes 113 s where this one takes 7 s (224 x 224, one thread;
    99 s of them after ``torch.export``), for a file with the same results that ONNX Runtime runs no
    faster (391 ms, this one's 365 ms). For all sizes ``torch.export`` stops at the resizing of
    small maps, as :class:`StandardOperators` computes their size with tensors; a formulation with
    symbolic integers has not been tried.
    """
    operators = StandardOperators(fixed_size=shape is not None)
    axes: dict[str, dict[int, str]] = {
        'image': {0: 'batch'} if shape else {0: 'batch', 2: 'height', 3: 'width'},
        **{name: {0: 'batch'} for name in (*part.input_names[1:], *part.output_names)},
    }
    inputs = part.inputs_of(torch.rand(2, image_channels(part), *(shape or TRACED_SIZE)))
    part.fixed_size = shape is not None
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), operators:
        # The checks of sizes in the network are Python's and, rightly, not in the graph.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', UserWarning)
        if operators.fixed_size:
            part(*inputs)
        torch.onnx.export(
            part,
            inputs,
            buffer,  # type: ignore[arg-type]  # taken, though not declared
            dynamo=False,
            opset_version=opset,
            # What follows from weights is left to the runtime: it would make the file larger.
            do_constant_folding=False,
            # Functions with a `symbolic` of their own stay whole.
            autograd_inlining=False,
            input_names=list(part.input_names),
            output_names=list(part.output_names),
            dynamic_axes=axes,
        )
    return buffer.getvalue()


def _differences(
    part: Exportable, path: Path, shape: tuple[int, int] | None
) -> dict[tuple[int, int, int], float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    differences = {}
    divisor = part.size_divisor
    shapes = [
        (b, -(-h // divisor) * divisor, -(-w // divisor) * divisor) for b, h, w in COMPARED_SHAPES
    ]
    for compared in shapes if shape is None else [(b, *shape) for b in (1, 2, 3)]:
        size = (compared[0], image_channels(part), *compared[1:])
        inputs = part.inputs_of(torch.randn(size, generator=generator))
        with torch.no_grad():
            expected = part(*inputs)
        arrays = (tensor.numpy() for tensor in inputs)
        actual = session.run(None, dict(zip(part.input_names, arrays, strict=True)))
        expected = (expected,) if isinstance(expected, Tensor) else expected
        differences[compared] = part.difference(
            [torch.from_numpy(array) for array in actual], expected
        )
    return differences
