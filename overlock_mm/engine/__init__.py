"""Components that mmengine builds by name or calls during a run.

Hooks, the optimizer's parameter groups, the FSDP strategy, metrics, test-time augmentation,
and the runner. The parts of one task import that task's library, so a config names them
in ``custom_imports``.
"""

from overlock_mm.engine.layer_decay import OverLoCKLayerDecayConstructor, layer_of
from overlock_mm.engine.parameter_groups import GroupedOptimWrapperConstructor, merge_groups

__all__ = [
    'GroupedOptimWrapperConstructor',
    'OverLoCKLayerDecayConstructor',
    'layer_of',
    'merge_groups',
]
