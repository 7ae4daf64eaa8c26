"""What a network costs, and what it looks at."""

from overlock_mm.analysis.complexity import Complexity, measure_complexity
from overlock_mm.analysis.contmix_kernels import ContMixKernels, contmix_kernels, project_contmix

__all__ = [
    'Complexity',
    'ContMixKernels',
    'contmix_kernels',
    'measure_complexity',
    'project_contmix',
]
