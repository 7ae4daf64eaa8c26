"""All operators of the stand-in; importing the families enters them in the table."""

from overlock_mm.mmcv_ops import (  # noqa: F401
    bbox_overlaps,
    carafe,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    info,
    masked_conv,
    ms_deform_attn,
    nms,
    psa_mask,
    roi_align,
    roi_pool,
    sync_bn,
)
from overlock_mm.mmcv_ops.registry import FAMILIES, OPERATORS

__all__ = ['FAMILIES', 'OPERATORS']
