"""Reading checkpoints: official files and ours, safely and with a report."""

from overlock_mm.checkpoint.names import TASKS, convert_official

__all__ = ['TASKS', 'convert_official']
