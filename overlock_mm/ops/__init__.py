"""Operators of OverLoCK. They need torch and nothing else."""

from overlock_mm.ops.contmix.api import contmix, neighborhood_aggregate
from overlock_mm.ops.contmix.backends import available_backends

__all__ = ['available_backends', 'contmix', 'neighborhood_aggregate']
