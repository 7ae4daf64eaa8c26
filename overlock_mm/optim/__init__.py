"""Optimizers' settings: groups of equal ones, and rates that know the structure of the network."""

from overlock_mm.optim.groups import GroupedOptimWrapperConstructor, merge_groups
from overlock_mm.optim.layer_decay import OverLoCKLayerDecayConstructor, layer_of

__all__ = [
    'GroupedOptimWrapperConstructor',
    'OverLoCKLayerDecayConstructor',
    'layer_of',
    'merge_groups',
]
