"""The block that Base-Net and Overview-Net share (paper figure 4a)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from overlock_mm.layers.basic import (
    ConvMLP,
    DropPath,
    LayerNorm2d,
    LayerScale,
    ResidualDepthwiseConv,
    SqueezeExcite,
    build_norm,
)
from overlock_mm.layers.recompute import RecomputableBlock, recompute_in_backward
from overlock_mm.layers.reparam import DilatedReparamConv


class BasicBlock(RecomputableBlock):
    """A residual block with a large depthwise convolution and a ConvMLP.

    Args:
        channels: D of the input and output, [B, D, H, W].
        kernel_size: Window of the depthwise convolution.
        mlp_ratio: Hidden width of the MLP over D.
        drop_path_rate: Probability of dropping the branch.
        layer_scale: Scale the identity path; the first two stages do not.
        norm_cfg: Type of the batch norms.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        mlp_ratio: int,
        drop_path_rate: float,
        layer_scale: bool,
        norm_cfg: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.dwconv = ResidualDepthwiseConv(channels)
        self.norm = LayerNorm2d(channels)
        self.large_conv = DilatedReparamConv(channels, kernel_size, norm_cfg)
        self.large_norm = build_norm(norm_cfg, channels)
        self.se = SqueezeExcite(channels)
        self.mlp = ConvMLP(channels, mlp_ratio * channels)
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale = LayerScale(channels) if layer_scale else nn.Identity()

    @recompute_in_backward
    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D, H, W] to the same shape."""
        x = self.dwconv(x)
        y = self.large_conv(self.norm(x))
        y = self.mlp(self.se(self.large_norm(y)))
        return self.drop_path(y) + self.layer_scale(x)
