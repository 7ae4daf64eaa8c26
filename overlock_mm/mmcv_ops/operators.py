"""All operators of the stand-in; importing the families enters them in the table."""

from overlock_mm.mmcv_ops import (  # noqa: F401
    deform_conv,
    focal_loss,
    info,
    ms_deform_attn,
    nms,
    roi_align,
    roi_pool,
)
from overlock_mm.mmcv_ops.registry import OPERATORS

__all__ = ['OPERATORS']
