"""Base-Net: the first three stages (paper figure 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from overlock_mm.layers.basic import ConvNorm
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.layers.stem import Stem
from overlock_mm.models.arch import OverLoCKArch


class BaseNet(nn.Module):
    """Stages 1 to 3. Each one is a downsampling layer followed by blocks.

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
        """Compute one stage (0 to 2) from the output of the previous one, halving the map."""
        return self.stages[stage](self.downsamples[stage](x))
