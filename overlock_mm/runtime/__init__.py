"""Running exported files with NumPy, Pillow and ONNX Runtime or OpenVINO; no torch is needed."""

from overlock_mm.runtime.description import FORMAT, ModelDescription, ModelFileError
from overlock_mm.runtime.results import Classification, Detections, Segmentation

__all__ = [
    'FORMAT',
    'Classification',
    'Detections',
    'ModelDescription',
    'ModelFileError',
    'Segmentation',
]
