"""What a network costs, and how its training went."""

from overlock_mm.analysis.complexity import Complexity, measure_complexity
from overlock_mm.analysis.curves import Curve, Run, plot_curves, read_run
from overlock_mm.analysis.memory import ActivationMemory, measure_activation_memory

__all__ = [
    'ActivationMemory',
    'Complexity',
    'Curve',
    'Run',
    'measure_activation_memory',
    'measure_complexity',
    'plot_curves',
    'read_run',
]
