"""Small layers that all blocks share. All maps are NCHW."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.layers.depthwise import DepthwiseConv2d, uses_kernels
from overlock_mm.layers.recompute import KeptConv2d
from overlock_mm.ops import depthwise_conv2d
from overlock_mm.ops.precision import in_autocast

LAYER_NORM_EPS = 1e-6
_INIT_STD = 0.02
#: Bounds of initial weights in standard deviations. ``trunc_normal_`` draws by the inverse of the
#: distribution in float32, whose largest value but infinity is 5.3. So bounds of 6 change no other
#: weight, and only replace what its default bounds of 2.0 make of infinity.
_INIT_BOUND = 6


def draw_truncated_normal(tensor: Tensor) -> None:
    """Fill a tensor with a normal distribution of std 0.02, cut off at 6 standard deviations."""
    bound = _INIT_BOUND * _INIT_STD
    nn.init.trunc_normal_(tensor, std=_INIT_STD, a=-bound, b=bound)


def initialise_projections(module: nn.Module) -> None:
    """Draw truncated normal weights and zero the biases of all convolutions and linear layers."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            draw_truncated_normal(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


_NORMS: dict[str, type[nn.modules.batchnorm._BatchNorm]] = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
}


def build_norm(norm_cfg: Mapping[str, Any], channels: int) -> nn.modules.batchnorm._BatchNorm:
    """Build a batch norm from an OpenMMLab ``norm_cfg``.

    Only batch norms: the fused form folds them into convolutions.

    Raises:
        ValueError: The type is neither BN nor SyncBN.
    """
    kwargs = dict(norm_cfg)
    norm_type = kwargs.pop('type', None)
    if norm_type not in _NORMS:
        raise ValueError(
            f'norm_cfg.type must be one of {", ".join(_NORMS)}, as batch norms are folded into '
            f'convolutions in fused form; got {norm_type!r}.'
        )
    requires_grad = kwargs.pop('requires_grad', True)
    norm = _NORMS[norm_type](channels, **kwargs)
    for parameter in norm.parameters():
        parameter.requires_grad = requires_grad
    return norm


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W] with eps 1e-6. It keeps channels_last memory."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        x = x.permute(0, 3, 1, 2)
        return x if channels_last else x.contiguous()


class LayerScale(nn.Module):
    """Per-channel weight and bias: ``weight * x + bias``.

    In OverLoCK it acts on the identity path of a block, not on the branch.
    The weight has shape [C, 1, 1, 1], that of the checkpoints' 1 x 1 depthwise
    convolution.
    """

    def __init__(self, channels: int, init_value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1, 1), init_value))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # As a convolution it took a sixth of a training step on the CPU.
        weight, bias = self.weight[..., 0].to(x.dtype), self.bias[:, None, None].to(x.dtype)
        return torch.addcmul(bias, x, weight)


class GRN(nn.Module):
    """Global response normalisation (ConvNeXt V2, section 3): ``(gamma * n + 1) * x + beta``.

    Norms are taken in float32 at least; the result has the dtype of ``x``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # In float16 the norm of a large map overflows, and infinity over infinity is NaN.
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=wide)
        response = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        factor = (self.gamma * response + 1).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), factor, x)


class SqueezeExcite(nn.Module):
    """A channel gate computed from the global mean. The hidden width is max(16, C // 8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(16, channels // 8)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * self.excite(gate).sigmoid()


class ResidualDepthwiseConv(DepthwiseConv2d):
    """``x + depthwise 3 x 3 (x)``, with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the convolution has a lower precision than x, which must keep its own.
        if uses_kernels(self, x) and not in_autocast(x.device.type):
            return depthwise_conv2d(x, self.weight, self.bias, addend=x)
        return x + super().forward(x)


class ConvMLP(nn.Module):
    """1x1 to ``hidden``, GELU, residual depthwise 3x3, GRN, 1x1 back to ``channels``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = KeptConv2d(channels, hidden, 1)
        self.dwconv = ResidualDepthwiseConv(hidden)
        self.grn = GRN(hidden)
        self.reduce = KeptConv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.expand(x))
        return self.reduce(self.grn(self.dwconv(x)))


class ConvNorm(nn.Sequential):
    """Convolution without bias, then a batch norm (``conv``, ``norm``)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm_cfg: Mapping[str, Any],
        stride: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = KeptConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = build_norm(norm_cfg, out_channels)


class DropPath(nn.Module):
    """Stochastic depth. In training, a sample's branch is dropped with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'
