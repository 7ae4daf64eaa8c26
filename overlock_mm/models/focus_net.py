"""Focus-Net, the closer look that the context prior guides (paper section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.layers.basic import ConvNorm
from overlock_mm.layers.dynamic_block import DynamicBlock
from overlock_mm.models.arch import OverLoCKArch


class FocusNet(nn.Module):
    """Stages 3 and 4. They consist of dynamic blocks, each of which receives the context prior.

    Args:
        arch: The variant.
        drop_path_rates: Per block, for both stages.
        norm_cfg: Type of the batch norms.
        contmix_backend: Backend of the operator; None chooses.
    """

    def __init__(
        self,
        arch: OverLoCKArch,
        drop_path_rates: Sequence[Sequence[float]],
        norm_cfg: Mapping[str, Any],
        contmix_backend: str | None,
    ) -> None:
        super().__init__()
        context_channels = arch.context_channels
        c3, c4 = arch.channels[2:]
        self.context_channels = context_channels
        self.prior_proj = nn.Conv2d(c4, context_channels, 1)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                DynamicBlock(
                    arch.channels[2 + stage],
                    context_channels,
                    arch.groups[stage],
                    arch.kernel_sizes[2 + stage],
                    arch.contmix_small_kernel,
                    arch.mlp_ratios[1],
                    rate,
                    is_first=stage == 0 and i == 0,
                    norm_cfg=norm_cfg,
                    contmix_backend=contmix_backend,
                )
                for i, rate in enumerate(drop_path_rates[stage])
            )
            for stage in range(2)
        )
        self.downsample_features = ConvNorm(c3, c4, 3, norm_cfg, stride=2)
        self.downsample_context = ConvNorm(
            context_channels, context_channels, 3, norm_cfg, stride=2
        )

    def prior(self, overview: Tensor) -> Tensor:
        """Map the Overview-Net's output [B, C4, H, W] to the context prior [B, C4/4, H, W]."""
        return self.prior_proj(overview)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, context = z.split((z.shape[1] - self.context_channels, self.context_channels), 1)
        return x, context

    def stage3(self, x: Tensor, prior: Tensor) -> Tensor:
        """Map [B, C3, H, W] and the prior at stride 32 to [B, C3 + C4/4, H, W]."""
        prior = F.interpolate(prior, x.shape[-2:], mode='bilinear', align_corners=False)
        context = prior
        for block in self.stages[0].children():
            z = block(x, context, prior)
            x, context = self._split(z)
        return z

    def stage4(self, z: Tensor, prior: Tensor) -> Tensor:
        """Map stage 3's output and the prior at stride 32 to [B, C4 + C4/4, H/2, W/2]."""
        x, context = self._split(z)
        x = self.downsample_features(x)
        context = self.downsample_context(context)
        for block in self.stages[1].children():
            z = block(x, context, prior)
            x, context = self._split(z)
        return z
