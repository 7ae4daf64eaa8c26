"""OverLoCK (CVPR 2025, arXiv 2502.20087) for the OpenMMLab 2.x stack.

Importing the package registers the backbone ``OverLoCK`` in mmengine's root
registry, where mmdet, mmseg and mmpretrain find it by its bare name.
"""

from overlock_mm.models import ARCHS, OverLoCK, OverLoCKArch
from overlock_mm.version import __version__

__all__ = ['ARCHS', 'OverLoCK', 'OverLoCKArch', '__version__']
