"""Base-Net: stem and the first three stages (paper figure 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from overlock_mm.models.arch import OverLoCKArch
from overlock_mm.models.blocks import BasicBlock
from overlock_mm.models.layers import ConvNorm
from overlock_mm.models.recompute import recompute_in_backward


class Stem(nn.Sequential):
    """Four 3 x 3 convolutions, strides 2 1 2 1, to stride 4."""

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
        """[B, in_channels, H, W] to [B, channels, H / 4, W / 4]."""
        return super().forward(x)


class BaseNet(nn.Module):
    """Stages 1 to 3, each a downsampling and its blocks.

    Args:
        arch: The variant.
        in_channels: Channels of the image.
        drop_path_rates: Per block, for each of the three stages.
        norm_cfg: Type of the batch norms.
    """

    def __init__(
        self,
        arch: OverLoCKArch,
        in_channels: int,
        drop_path_rates: Sequence[Sequence[float]],
        norm_cfg: Mapping[str, Any],
    ) -> None:
        super().__init__()
        c1, c2, c3 = arch.channels[:3]
        self.downsamples = nn.ModuleList(
            [
                Stem(in_channels, c1, norm_cfg),
                ConvNorm(c1, c2, 3, norm_cfg, stride=2),
                ConvNorm(c2, c3, 3, norm_cfg, stride=2),
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    BasicBlock(
                        arch.channels[i],
                        arch.kernel_sizes[i],
                        arch.mlp_ratios[0],
                        rate,
                        layer_scale=i >= 2,
                        norm_cfg=norm_cfg,
                    )
                    for rate in drop_path_rates[i]
                )
            )
            for i in range(3)
        )

    def forward(self, x: Tensor, stage: int) -> Tensor:
        """Output of one stage (0 to 2) from the previous one's, halving the map."""
        return self.stages[stage](self.downsamples[stage](x))
