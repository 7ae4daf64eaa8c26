"""Mask head for mmdet's ``StandardRoIHead``.

Only the detection configs name it: the backbone does not need mmdet.
"""

from mmdet.models import FCNMaskHead
from mmdet.registry import MODELS


@MODELS.register_module()
class ConstructorInitMaskHead(FCNMaskHead):
    """mmdet's ``FCNMaskHead`` with the initial weights that its constructor draws.

    mmdet's class accepts no ``init_cfg``, and its ``init_weights`` draws the last two layers from
    other distributions. The published runs never called it.

    Args:
        **kwargs: Arguments of ``FCNMaskHead``.
    """

    def init_weights(self) -> None:
        """Keep the constructor's weights."""
