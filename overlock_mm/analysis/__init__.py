"""What a network costs."""

from overlock_mm.analysis.complexity import Complexity, measure_complexity

__all__ = ['Complexity', 'measure_complexity']
