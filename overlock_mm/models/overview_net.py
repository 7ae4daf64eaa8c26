"""Overview-Net: a quick look at the whole scene, at stride 32 (paper figure 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from overlock_mm.models.arch import OverLoCKArch
from overlock_mm.models.blocks import BasicBlock
from overlock_mm.models.layers import ConvNorm, LayerNorm2d, LayerScale


class OverviewNet(nn.Module):
    """Few blocks on a halved map; their output is the source of the context prior.

    Args:
        arch: The variant.
        drop_path_rates: Per block.
        norm_cfg: Type of the batch norms.
    """

    def __init__(
        self,
        arch: OverLoCKArch,
        drop_path_rates: Sequence[float],
        norm_cfg: Mapping[str, Any],
    ) -> None:
        super().__init__()
        c3, c4 = arch.channels[2:]
        self.downsample = ConvNorm(c3, c4, 3, norm_cfg, stride=2)
        self.blocks = nn.Sequential(
            *(
                BasicBlock(
                    c4,
                    arch.kernel_sizes[3],
                    arch.mlp_ratios[0],
                    rate,
                    layer_scale=True,
                    norm_cfg=norm_cfg,
                )
                for rate in drop_path_rates
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C3, H, W] at stride 16 to [B, C4, H/2, W/2] at stride 32."""
        return self.blocks(self.downsample(x))


class ContextResidual(nn.Module):
    """What the detection networks add to output 3: a little of the overview."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels)
        self.proj = nn.Conv2d(in_channels, out_channels, 1)
        self.layer_scale = LayerScale(out_channels, init_value=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_scale(self.proj(self.norm(x)))
