"""Learning rates that fall with the distance of a block from the heads."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from overlock_mm.engine.parameter_groups import GroupedOptimWrapperConstructor
from overlock_mm.models import OverLoCK
from overlock_mm.models.arch import STAGE_BLOCKS, STAGE_ENTRIES, STAGES

# ImageNet training knows neither: they start fresh, as the heads do.
_TASK_PARTS = re.compile(r'(norm[0-3]|overview_residual)\.')


def layer_of(name: str, depths: Sequence[int]) -> int:
    """Depth of a backbone parameter, counted in blocks.

    Args:
        name: Name of the parameter within ``OverLoCK``.
        depths: Blocks of each stage, as in ``OverLoCKArch``.

    Returns:
        0 for the stem, 1 to ``sum(depths)`` for the blocks in the order of execution (what leads
        into a stage counts as its first block), ``sum(depths) + 1`` for the parts that belong to
        the task: norms of outputs and the overview's residual.

    Raises:
        ValueError: The backbone has no such parameter.
    """
    if name.startswith(f'{STAGE_ENTRIES["base1"][0]}.'):
        return 0
    if _TASK_PARTS.match(name):
        return sum(depths) + 1
    first_blocks = [1, *(1 + end for end in accumulate(depths))]
    for stage, first in zip(STAGES, first_blocks, strict=False):
        block = re.match(rf'{re.escape(STAGE_BLOCKS[stage])}\.(\d+)\.', name)
        if block:
            return first + int(block[1])
        if name.startswith(tuple(f'{entry}.' for entry in STAGE_ENTRIES[stage])):
            return first
    raise ValueError(f'OverLoCK has no parameter {name!r}.')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OverLoCKLayerDecayConstructor(GroupedOptimWrapperConstructor):
    """mmengine's constructor, with the learning rate lowered from block to block.

    A parameter at depth d (see :func:`layer_of`) of a backbone of N blocks learns at
    ``lr * decay_rate ** (N + 1 - d)``, everything outside the backbone at ``lr``. It multiplies
    what the other settings of ``paramwise_cfg`` give.

    Args:
        optim_wrapper_cfg: The same as in mmengine.
        paramwise_cfg: The same as in mmengine, with ``decay_rate`` in (0, 1].

    Raises:
        ValueError: ``decay_rate`` is missing or out of its range, or the model has no ``backbone``
            of type ``OverLoCK``.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
        ...     constructor='OverLoCKLayerDecayConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.95),
        ... )
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        decay_rate = self.paramwise_cfg.get('decay_rate')
        if decay_rate is None or not 0.0 < decay_rate <= 1.0:
            raise ValueError(
                f'paramwise_cfg.decay_rate must be in (0, 1], got {decay_rate!r}. Set it, or leave '
                'out the constructor.'
            )

    def adjust(self, params: list[dict[str, Any]], module: nn.Module) -> None:
        """Scale the rates of the backbone's parameters."""
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, OverLoCK):
            raise ValueError(
                f'{type(self).__name__} needs a model whose `backbone` is an OverLoCK, got '
                f'{type(backbone).__name__}.'
            )
        depths = backbone.arch.depths
        distances = {
            id(parameter): sum(depths) + 1 - layer_of(name, depths)
            for name, parameter in backbone.named_parameters()
        }
        for group in params:
            distance = distances.get(id(group['params'][0]), 0)
            scale = self.paramwise_cfg['decay_rate'] ** distance
            group['lr'] = group.get('lr', self.base_lr) * scale
