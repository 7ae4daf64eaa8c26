"""The network, file by file as in the paper's figure 3."""

from overlock_mm.models.arch import ARCHS, OverLoCKArch
from overlock_mm.models.contmix import ContMix
from overlock_mm.models.overlock import OverLoCK

__all__ = ['ARCHS', 'ContMix', 'OverLoCK', 'OverLoCKArch']
