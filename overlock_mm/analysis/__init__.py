"""What a network costs, and how its training went."""

from overlock_mm.analysis.complexity import Complexity, measure_complexity
from overlock_mm.analysis.curves import Curve, Run, plot_curves, read_run

__all__ = ['Complexity', 'Curve', 'Run', 'measure_complexity', 'plot_curves', 'read_run']
