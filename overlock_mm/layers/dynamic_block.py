"""The block of Focus-Net (paper figure 4b and section 3.4)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.layers.basic import (
    GRN,
    ConvMLP,
    ConvNorm,
    DropPath,
    LayerNorm2d,
    LayerScale,
    ResidualDepthwiseConv,
    SqueezeExcite,
    build_norm,
)
from overlock_mm.layers.contmix import ContMix
from overlock_mm.layers.depthwise import DepthwiseConv2d
from overlock_mm.layers.recompute import KeptConv2d, RecomputableBlock, recompute_in_backward
from overlock_mm.layers.reparam import DilatedReparamConv


class Fusion(nn.Module):
    """Fuses features and context into a map of D channels: 3x3 depthwise, norm, GELU, 1x1, GRN."""

    def __init__(self, in_channels: int, channels: int, norm_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(in_channels, 3, bias=True)
        self.norm = build_norm(norm_cfg, in_channels)
        self.proj = KeptConv2d(in_channels, channels, 1)
        self.grn = GRN(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.dwconv(x)))
        return self.grn(self.proj(x))


class DynamicBlock(RecomputableBlock):
    """The gated dynamic block (paper figure 4b), which updates features and context.

    Args:
        channels: D of the features.
        context_channels: Channels of the context and of the prior.
        groups: Published number of ContMix groups.
        kernel_size: Large window of ContMix and of the local convolution.
        small_kernel_size: Small window of ContMix.
        mlp_ratio: Hidden width of the MLP over D.
        drop_path_rate: Probability of dropping each of the two branches.
        is_first: The first block of Focus-Net, whose context is the prior itself.
        norm_cfg: Type of the batch norms.
        contmix_backend: Backend of the operator; None chooses.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        groups: int,
        kernel_size: int,
        small_kernel_size: int,
        mlp_ratio: int,
        drop_path_rate: float,
        is_first: bool,
        norm_cfg: Mapping[str, Any],
        contmix_backend: str | None,
    ) -> None:
        super().__init__()
        width = channels + context_channels
        self.split_sizes = (channels, context_channels)
        self.is_first = is_first
        if not is_first:
            self.context_scale = LayerScale(context_channels)
            self.prior_scale = LayerScale(context_channels)

        self.dwconv1 = ResidualDepthwiseConv(width)
        self.norm1 = LayerNorm2d(width)
        self.fusion = Fusion(width, channels, norm_cfg)
        self.gate = ConvNorm(channels, channels, 1, norm_cfg)
        self.local_conv = DilatedReparamConv(channels, kernel_size, norm_cfg)
        self.local_norm = build_norm(norm_cfg, channels)
        self.contmix = ContMix(
            channels,
            context_channels,
            channels,
            groups,
            kernel_size,
            small_kernel_size,
            norm_cfg,
            contmix_backend,
        )
        self.se = SqueezeExcite(channels)
        self.out_norm = build_norm(norm_cfg, channels)
        self.out_proj = KeptConv2d(channels, width, 1)
        self.layer_scale1 = LayerScale(width)

        self.dwconv2 = ResidualDepthwiseConv(width)
        self.norm2 = LayerNorm2d(width)
        self.mlp = ConvMLP(width, mlp_ratio * channels)
        self.layer_scale2 = LayerScale(width)
        self.drop_path = DropPath(drop_path_rate)

    @recompute_in_backward
    def forward(self, x: Tensor, context: Tensor, prior: Tensor) -> Tensor:
        """Update features and context.

        Args:
            x: Features [B, D, H, W].
            context: [B, C4/4, H, W].
            prior: Context prior at this stride, [B, C4/4, H, W].

        Returns:
            New features and context, concatenated: [B, D + C4/4, H, W].
        """
        if not self.is_first:
            context = self.context_scale(context) + self.prior_scale(prior)
        z = self.dwconv1(torch.cat((x, context), 1))
        normed = self.norm1(z)
        fused = self.fusion(normed)
        query, key = normed.split(self.split_sizes, 1)
        mixed = self.contmix(query, key, fused)
        local = self.local_norm(self.local_conv(fused))
        y = self.se(mixed + local) * F.silu(self.gate(fused))
        y = self.out_proj(self.out_norm(y))
        z = self.layer_scale1(z) + self.drop_path(y)

        z = self.dwconv2(z)
        y = self.mlp(self.norm2(z))
        return self.drop_path(y) + self.layer_scale2(z)
