"""OverLoCK (CVPR 2025, arXiv 2502.20087) for the OpenMMLab 2.x stack.

Importing the package registers the backbone ``OverLoCK`` and the constructor of its layer-wise
learning rates in mmengine's root registries, where mmdet, mmseg and mmpretrain find them by their
bare names, lets configs inherit ours as ``overlock_mm::detection/cascade_overlock_s.py``, and
offers mmcv's operators where mmcv was installed without its compiled ones.

Without mmengine the operators (:mod:`overlock_mm.ops`), :class:`ContMix` and
:class:`ContMixBlock` work; they need only torch. Without torch :class:`Predictor` runs exported
files.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from overlock_mm.version import __version__, check_torch

if importlib.util.find_spec('torch') is not None:
    import torch

    check_torch(torch.__version__)  # before anything that an older one would break
    from overlock_mm.models import ARCHS, ContMix, ContMixBlock, OverLoCKArch

    if importlib.util.find_spec('mmengine') is not None:
        from overlock_mm import checkpoint  # noqa: F401  # registers what loads pretrained weights
        from overlock_mm.configs import allow_package_names
        from overlock_mm.engine import OverLoCKLayerDecayConstructor
        from overlock_mm.mmcv_ops import offer_operators
        from overlock_mm.models.overlock import OverLoCK

        allow_package_names()
        offer_operators()

if TYPE_CHECKING:
    from overlock_mm.predict import Predictor

__all__ = [
    'ARCHS',
    'ContMix',
    'ContMixBlock',
    'OverLoCK',
    'OverLoCKArch',
    'OverLoCKLayerDecayConstructor',
    'Predictor',
    '__version__',
]


def __getattr__(name: str) -> Any:
    if name == 'Predictor':
        from overlock_mm.predict import Predictor

        return Predictor
    if name in __all__:
        missing = 'torch' if importlib.util.find_spec('torch') is None else 'mmengine'
        remedy = 'torch' if missing == 'torch' else 'onedl-mmengine'
        raise ImportError(
            f'overlock_mm.{name} needs {missing}, which is not installed. Remedy: '
            f'pip install {remedy}.'
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
