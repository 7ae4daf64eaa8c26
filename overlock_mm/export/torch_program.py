"""Writes a part of a model as a program of ``torch.export``, for runtimes of torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from overlock_mm.export.onnx_file import TOLERANCE, ExportError
from overlock_mm.export.parts import Exportable
from overlock_mm.models.overlock import image_channels
from overlock_mm.utils.files import replacing


def export_program(
    part: Exportable,
    path: str | Path,
    shape: tuple[int, int] | None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a part of a model as a ``.pt2`` file, atomically.

    The batch size is free. To load it, ``import overlock_mm.export`` comes first: the program calls
    this package's operators, and torchvision's, by their names.

    Args:
        part: In deploy form where speed counts; it is traced on the CPU in evaluation mode.
        path: The file.
        shape: (H, W) of the images.
        metadata: Further files of the archive, as text.

    Returns:
        The largest difference to the part on a batch of another size, of the largest value.

    Raises:
        ValueError: The sizes are to be free.
        ExportError: An output differs by more than 1e-4.
    """
    if shape is None:
        raise ValueError(
            'A .pt2 file is for one size of images, --shape H W: small maps are enlarged in a '
            'branch, of which torch.export takes one. An .onnx file can be for all sizes.'
        )
    part = part.cpu().float().eval()
    part.fixed_size = part.fixed_rows = True
    inputs = part.inputs_of(torch.randn(2, image_channels(part), *shape))
    batch = torch.export.Dim('batch', min=1)
    shapes = torch.export.ShapesCollection()
    for tensor in inputs:
        shapes[tensor] = {0: batch}
    with torch.no_grad():
        program = torch.export.export(
            part, inputs, dynamic_shapes=shapes.dynamic_shapes(part, inputs), strict=False
        )
        inputs = part.inputs_of(torch.randn(3, *inputs[0].shape[1:]))
        actual, expected = program.module()(*inputs), part(*inputs)
    if isinstance(expected, Tensor):
        actual, expected = (actual,), (expected,)
    difference = part.difference(actual, expected)
    if not difference <= TOLERANCE:  # NaN too
        raise ExportError(
            f'The exported program differs from the model by {difference:.2g} of the largest '
            f'value, allowed are {TOLERANCE:g}. {path} was not written.'
        )
    buffer = io.BytesIO()  # on a full disk torch's own writer ends the process
    torch.export.save(program, buffer, extra_files=dict(metadata or {}))
    with replacing(path) as partial:
        partial.write_bytes(buffer.getvalue())
    return difference
