"""ContMix, the context-mixing dynamic convolution (paper section 3.3)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm import ops
from overlock_mm.layers.basic import ConvNorm, build_norm
from overlock_mm.layers.recompute import KeptConv2d, keep_results_of
from overlock_mm.ops.dispatch import overridable

#: Side of the grid of region centres that a token is compared with.
REGION_GRID = 7


def upsampled_size(height: int, width: int, kernel_size: int) -> tuple[int, int]:
    """Return the size to which a map smaller than the window is upsampled: short side K.

    The published network divides first and truncates, so a 3 x 27 map becomes
    13 x 116, not 13 x 117; the order of operations is part of its checkpoints.
    """
    if height < width:
        return kernel_size, int(kernel_size / height * width)
    # max: for some K, K / W * H of a square map truncates to K - 1.
    return max(kernel_size, int(kernel_size / width * height)), kernel_size


@overridable
def upsample(x: Tensor, kernel_size: int) -> Tensor:
    """Resize [B, C, H, W] to :func:`upsampled_size` if it is smaller than the window."""
    height, width = x.shape[-2:]
    if min(height, width) >= kernel_size:
        return x
    size = upsampled_size(height, width, kernel_size)
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


class KernelParameters(NamedTuple):
    """The parameters of one of the two kernels of a ContMix.

    Args:
        size: K.
        proj_weight: Weight of the projection from affinities to logits, [K*K, S].
        proj_bias: [K*K].
        rpb: Relative position bias [G, 2K-1, 2K-1].
    """

    size: int
    proj_weight: Tensor
    proj_bias: Tensor
    rpb: Tensor


class ContMix(nn.Module):
    """Mixes values with kernels made from each token's affinity to the context.

    A query per token meets the keys of 7 x 7 region centres; a linear layer turns
    the 49 affinities of a group into the logits of two kernels, small and large. The
    first half of the value channels is mixed with the small one, the second half
    with the large one.

    Args:
        query_channels: Channels of the map that gives the query.
        key_channels: Channels of the map that gives the keys.
        channels: D, channels of the value and the output.
        groups: Published number of groups; twice as many are used.
        kernel_size: K of the large kernel.
        small_kernel_size: K of the small kernel.
        norm_cfg: Type of the batch norms.
        backend: Backend of :func:`overlock_mm.ops.contmix`; None chooses.
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        channels: int,
        groups: int,
        kernel_size: int,
        small_kernel_size: int,
        norm_cfg: Mapping[str, Any],
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.groups = 2 * groups
        self.kernel_sizes = (small_kernel_size, kernel_size)
        self.backend = backend
        # A group's query has D / 2 / G channels, yet the published network scales by
        # (D / G) ** -0.5, and its checkpoints were trained so.
        self.scale = (channels / self.groups) ** -0.5
        self.query = ConvNorm(query_channels, channels // 2, 1, norm_cfg)
        self.key = ConvNorm(key_channels, channels // 2, 1, norm_cfg)
        # Never called: its weights are arguments of the operator.
        taps = sum(size * size for size in self.kernel_sizes)
        self.kernel_proj = nn.Conv2d(REGION_GRID**2, taps, 1)
        self.rpb_small, self.rpb_large = (
            nn.Parameter(torch.zeros(self.groups, 2 * size - 1, 2 * size - 1))
            for size in self.kernel_sizes
        )
        self.out_proj = KeptConv2d(channels, channels, 1, bias=False)
        self.out_norm = build_norm(norm_cfg, channels)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix ``value``.

        Args:
            query: [B, query_channels, H, W].
            key: [B, key_channels, H, W].
            value: [B, D, H, W].
            size: Height and width of the output, smaller where the caller has
                called :meth:`upsample` on the maps; None: H and W.

        Returns:
            [B, D, *size].
        """
        height, width = value.shape[-2:]
        size = (height, width) if size is None else size
        query, key, value = self.upsample(query, key, value)
        out = torch.cat(self._mix(*self.project(query, key), value), 1)
        if out.shape[-2:] != size:
            out = F.adaptive_avg_pool2d(out, size)
        return self.out_norm(self.out_proj(out))

    def upsample(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Resize the maps [B, *, H, W] if they are smaller than the large window."""
        return tuple(upsample(x, self.kernel_sizes[1]) for x in maps)

    def project(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each token's query and each region's key, per group.

        Args:
            query: [B, query_channels, H, W], upsampled where needed.
            key: [B, key_channels, H, W], of the same map.

        Returns:
            [B, G, Cq, H, W] and [B, G, Cq, S].
        """
        query = self.query(query)
        key = self.key(F.adaptive_avg_pool2d(key, REGION_GRID))
        return query.unflatten(1, (self.groups, -1)), key.flatten(2).unflatten(1, (self.groups, -1))

    def kernel_parameters(self) -> list[KernelParameters]:
        """Return the parameters of the small and of the large kernel."""
        taps = [size * size for size in self.kernel_sizes]
        weights = self.kernel_proj.weight.flatten(1).split(taps)
        biases = self.kernel_proj.bias.split(taps)  # type: ignore[union-attr]  # it has one
        tables = (self.rpb_small, self.rpb_large)
        return [
            KernelParameters(*parts)
            for parts in zip(self.kernel_sizes, weights, biases, tables, strict=True)
        ]

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Apply each kernel to its half of the values [B, D, H, W]."""
        halves = value.unflatten(1, (2, self.groups, -1)).unbind(1)  # 2 x [B, G, C, H, W]
        with keep_results_of(torch.ops.overlock_mm.contmix.default):
            out = [
                ops.contmix(
                    query,
                    key,
                    half,
                    kernel.proj_weight,
                    kernel.proj_bias,
                    kernel.rpb,
                    kernel.size,
                    scale=self.scale,
                    backend=self.backend,
                )
                for half, kernel in zip(halves, self.kernel_parameters(), strict=True)
            ]
        # Maps of [B, D / 2, H, W] keep channels_last, a stack of [B, G, C, H, W] would not.
        return tuple(half.flatten(1, 2) for half in out)
