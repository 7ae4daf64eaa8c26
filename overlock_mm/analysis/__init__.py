"""What a network costs."""

from overlock_mm.analysis.complexity import Complexity, measure_complexity
from overlock_mm.analysis.memory import ActivationMemory, measure_activation_memory

__all__ = [
    'ActivationMemory',
    'Complexity',
    'measure_activation_memory',
    'measure_complexity',
]
