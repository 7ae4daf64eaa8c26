"""Analysis of networks: cost, training curves, receptive fields, activation maps and kernels."""

from overlock_mm.analysis.complexity import Complexity, measure_complexity
from overlock_mm.analysis.contmix_kernels import ContMixKernels, contmix_kernels, project_contmix
from overlock_mm.analysis.curves import Curve, Run, plot_curves, read_run
from overlock_mm.analysis.memory import ActivationMemory, measure_activation_memory

__all__ = [
    'ActivationMemory',
    'Complexity',
    'ContMixKernels',
    'Curve',
    'Run',
    'contmix_kernels',
    'measure_activation_memory',
    'measure_complexity',
    'plot_curves',
    'project_contmix',
    'read_run',
]
