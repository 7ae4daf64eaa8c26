"""Overview-Net, which summarizes the whole image at stride 32 (paper figure 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from overlock_mm.layers.basic import ConvNorm
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.models.arch import OverLoCKArch


class OverviewNet(nn.Module):
    """A downsampling layer and a few blocks, whose output becomes the context prior.

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
        """Map [B, C3, H, W] at stride 16 to [B, C4, H/2, W/2] at stride 32."""
        return self.blocks(self.downsample(x))
