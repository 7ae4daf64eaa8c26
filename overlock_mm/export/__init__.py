"""Export to ONNX, in standard operators."""

from overlock_mm.export.onnx_file import ExportError, check_request, export_onnx
from overlock_mm.export.parts import Exportable, Normalised
from overlock_mm.export.pasted import PastedMasks
from overlock_mm.export.tasks import exportable

__all__ = [
    'ExportError',
    'Exportable',
    'Normalised',
    'PastedMasks',
    'check_request',
    'export_onnx',
    'exportable',
]
