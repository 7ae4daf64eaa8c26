"""mmcv's operators without a compiled mmcv.

The Python part of mmcv calls its operators in the extension module ``mmcv._ext``. Where that
module is not installed (``mmcv-lite``, or an mmcv that was built with ``MMCV_WITH_OPS=0``), this
package offers one in its place, which computes with torchvision and PyTorch what the models,
losses and post-processing of mmdet 3, mmseg 1 and mmpretrain 1 use. Where the compiled module is
installed nothing changes, also if it fails to load.

Each operator has the name and the signature that it has in mmcv. Whatever mmcv writes into tensors
that it was given is written here, too. Sums in half precision are taken in float32.
"""

from overlock_mm.mmcv_ops.finder import EXTENSION, is_stand_in, offer_operators

__all__ = ['EXTENSION', 'is_stand_in', 'offer_operators']
