"""The first convolutions of the network (paper figure 3)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from overlock_mm.layers.basic import ConvNorm
from overlock_mm.layers.recompute import recompute_in_backward


class Stem(nn.Sequential):
    """Four 3 x 3 convolutions with strides 2, 1, 2 and 1."""

    recompute = 'cheap'

    def __init__(self, in_channels: int, channels: int, norm_cfg: Mapping[str, Any]) -> None:
        half = channels // 2
        super().__init__(
            ConvNorm(in_channels, half, 3, norm_cfg, stride=2),
            nn.GELU(),
            ConvNorm(half, half, 3, norm_cfg),
            nn.GELU(),
            ConvNorm(half, channels, 3, norm_cfg, stride=2),
            nn.GELU(),
            ConvNorm(channels, channels, 3, norm_cfg),
        )

    @recompute_in_backward
    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, channels, H / 4, W / 4]."""
        return super().forward(x)
