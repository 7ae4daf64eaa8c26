"""The network, with one file for each part of the paper's figure 3.

Everything but :class:`OverLoCK` itself, which is an mmengine module, needs only torch.
"""

from typing import TYPE_CHECKING, Any

from overlock_mm.layers.contmix import ContMix
from overlock_mm.models.arch import ARCHS, OverLoCKArch
from overlock_mm.models.contmix_block import ContMixBlock

if TYPE_CHECKING:
    from overlock_mm.models.overlock import OverLoCK

__all__ = ['ARCHS', 'ContMix', 'ContMixBlock', 'OverLoCK', 'OverLoCKArch']


def __getattr__(name: str) -> Any:
    if name == 'OverLoCK':
        from overlock_mm.models.overlock import OverLoCK

        return OverLoCK
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
