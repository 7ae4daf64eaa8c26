"""Layers of the fused form, which make few passes over maps.

Maps are [B, C, H, W]. The layers return them in channels_last memory, where the channels of a
pixel lie side by side: a 1 x 1 convolution is then one matrix product, and a LayerNorm over
channels needs no copies. Weights are constants. Gradients flow only to the input.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.layers.basic import (
    GRN,
    ConvMLP,
    LayerNorm2d,
    LayerScale,
    ResidualDepthwiseConv,
    SqueezeExcite,
)
from overlock_mm.layers.contmix import ContMix
from overlock_mm.layers.reparam import fuse_conv_bn
from overlock_mm.ops import (
    channels_innermost,
    depthwise_conv2d,
    depthwise_conv2d_norm,
    depthwise_conv2d_stats,
    pointwise_conv2d,
)


def with_identity(weight: Tensor) -> Tensor:
    """Return the depthwise kernel whose convolution is ``x + convolution(x)``.

    Args:
        weight: [C, 1, k, k], k odd.
    """
    weight = weight.clone()
    centre = weight.shape[-1] // 2
    weight[:, :, centre, centre] += 1
    return weight


def fuse_bn_pointwise(
    norm: nn.modules.batchnorm._BatchNorm, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a 1 x 1 convolution that includes the ``norm`` before it.

    Args:
        norm: Batch norm over I channels with running statistics.
        weight: [O, I, 1, 1].
        bias: [O].

    Raises:
        ValueError: The norm keeps no running statistics.
    """
    identity = torch.ones_like(weight[0]).unsqueeze(1)  # a 1 x 1 depthwise kernel
    factor, shift = fuse_conv_bn(identity, None, norm)
    return weight * factor.view(1, -1, 1, 1), bias + weight.flatten(1) @ shift


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return the convolution's bias [O], or zeros if it has none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def constant(tensor: Tensor) -> nn.Parameter:
    """Return a copy as a parameter that is not trained."""
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


class _Matrix(nn.Module):
    """Weight [O, I] of a 1 x 1 convolution, in the memory order in which oneDNN multiplies faster.

    In float32 this is the order of [I, O]: products by rows of few pixels gain most, as packing
    the weight is a good part of their time. In 16 bits it is the order of [O, I].

    Args:
        weight: [O, I, 1, 1].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = constant(weight.flatten(1))
        self._order_memory()

    def _order_memory(self) -> None:
        weight = self.weight.data
        transposed = weight.dtype == torch.float32
        self.weight.data = weight.t().contiguous().t() if transposed else weight.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> '_Matrix':
        super()._apply(fn, recurse)
        self._order_memory()
        return self

    def extra_repr(self) -> str:
        return f'{self.weight.shape[1]}, {self.weight.shape[0]}'


class Pointwise(_Matrix):
    """A 1 x 1 convolution of a map, or of its product with a factor per sample and channel.

    Args:
        weight: [O, I, 1, 1].
        bias: [O], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight)
        self.bias = None if bias is None else constant(bias)

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """Map [B, I, H, W] and a factor [B, I] to [B, O, H, W]."""
        return pointwise_conv2d(x, self.weight, self.bias, factor=factor)

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ blocks."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


class PointwiseSum(_Matrix):
    """A 1 x 1 convolution that ends a residual branch. It has no bias: see :class:`SkipNorm`.

    Args:
        weight: [O, I, 1, 1].
    """

    def forward(self, skip: Tensor, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """Add the convolution of ``x`` [B, I, H, W] times a factor [B, I] to ``skip`` [B, O, H, W].

        The sum may be written into ``skip``.
        """
        return pointwise_conv2d(x, self.weight, factor=factor, addend=skip, inplace=True)


class DepthwiseConv(nn.Module):
    """A depthwise convolution, in one pass with the element-wise work around it.

    Args:
        weight: [C, 1, k, k], k odd.
        bias: [C].
        input_bias: What the input lacks, [C] or None. Here it costs nothing, and as a bias of the
            matrix product before a pass over the map.
    """

    def __init__(self, weight: Tensor, bias: Tensor, input_bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = constant(channels_innermost(weight))
        self.bias = constant(bias)
        self.input_bias = None if input_bias is None else constant(input_bias)

    def with_gelu(self, x: Tensor) -> Tensor:
        """Return ``gelu(convolution(x))`` of [B, C, H, W]."""
        return depthwise_conv2d(x, self.weight, self.bias, gelu_output=True)

    def with_mean(self, x: Tensor, addend: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``convolution(x) + addend`` [B, C, H, W] and its mean over the pixels [B, C]."""
        return depthwise_conv2d_stats(x, self.weight, self.bias, addend=addend, stat='mean')

    def with_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``convolution(gelu(x + input_bias))`` and its L2 norm over the pixels [B, C]."""
        return depthwise_conv2d_stats(
            x,
            self.weight,
            self.bias,
            input_bias=self.input_bias,
            gelu_input=True,
            stat='norm',
        )

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ blocks."""
        own = (self.weight, self.bias)
        return own if self.input_bias is None else (*own, self.input_bias)

    def extra_repr(self) -> str:
        return f'{len(self.weight)}, kernel_size={self.weight.shape[-1]}'


class SkipNorm(nn.Module):
    """The beginning of a residual block: ``x + dwconv(x)``, then two paths.

    A LayerNorm goes into the branch, and the scaled identity path past it. What the branch
    adds to every pixel at its end is added to that path here.

    Args:
        dwconv: The residual depthwise convolution.
        norm: The LayerNorm.
        layer_scale: The identity path's LayerScale, or an ``nn.Identity``.
        branch_bias: Bias at the end of the branch, [C].
    """

    def __init__(
        self,
        dwconv: ResidualDepthwiseConv,
        norm: LayerNorm2d,
        layer_scale: nn.Module,
        branch_bias: Tensor,
    ) -> None:
        super().__init__()
        self.weight = constant(channels_innermost(with_identity(dwconv.weight)))
        self.bias = constant(bias_of(dwconv))
        self.norm_weight = constant(norm.weight)
        self.norm_bias = constant(norm.bias)
        self.eps = norm.eps
        scale, shift = torch.ones_like(branch_bias), branch_bias
        if isinstance(layer_scale, LayerScale):
            scale, shift = layer_scale.weight.flatten(), layer_scale.bias + branch_bias
        self.skip_weight = constant(scale)
        self.skip_bias = constant(shift)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, C, H, W] to the identity path and the branch's input, both of the same shape."""
        return depthwise_conv2d_norm(
            x,
            self.weight,
            self.bias,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            skip_weight=self.skip_weight,
            skip_bias=self.skip_bias,
        )

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ blocks."""
        return (
            *(self.weight, self.bias, self.norm_weight, self.norm_bias),
            *(self.skip_weight, self.skip_bias),
        )


def operands_of_contmix(contmix: ContMix) -> tuple[Tensor, ...]:
    """All parameters of a folded ContMix, in the order of the C++ blocks."""
    proj = contmix.kernel_proj
    return (
        *(contmix.query.weight, contmix.query.bias, contmix.key.weight, contmix.key.bias),
        *(proj.weight, bias_of(proj), contmix.rpb_small, contmix.rpb_large),
        *(contmix.out_proj.weight, contmix.out_proj.bias),
    )  # type: ignore[return-value]  # the folded layers have biases


def fold_contmix(contmix: ContMix) -> ContMix:
    """Fold batch norms and the scale of the affinity, in place."""
    query, key = contmix.query, contmix.key
    weight, bias = fuse_conv_bn(query.conv.weight, None, query.norm)
    parts = {
        'query': Pointwise(weight * contmix.scale, bias * contmix.scale),
        'key': Pointwise(*fuse_conv_bn(key.conv.weight, None, key.norm)),
        'out_proj': Pointwise(*fuse_conv_bn(contmix.out_proj.weight, None, contmix.out_norm)),
        'out_norm': nn.Identity(),
    }
    for name, part in parts.items():
        contmix.add_module(name, part)
    contmix.scale = 1.0
    return contmix


class ChannelGate(nn.Module):
    """The factors of a squeeze-excite layer."""

    def __init__(self, se: SqueezeExcite) -> None:
        super().__init__()
        self.squeeze = Pointwise(se.squeeze.weight, bias_of(se.squeeze))
        self.excite = Pointwise(se.excite.weight, bias_of(se.excite))

    def forward(self, mean: Tensor) -> Tensor:
        """Map the mean over the pixels to factors from 0 to 1, [B, C]."""
        mean = mean.to(self.squeeze.weight.dtype)
        hidden = F.gelu(F.linear(mean, self.squeeze.weight, self.squeeze.bias))
        return F.linear(hidden, self.excite.weight, self.excite.bias).sigmoid()

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ blocks."""
        return (*self.squeeze.operands(), *self.excite.operands())


class ChannelResponse(nn.Module):
    """The factors of a GRN layer; its ``beta`` is left to the caller."""

    def __init__(self, grn: GRN) -> None:
        super().__init__()
        self.gamma = constant(grn.gamma.flatten())

    def forward(self, norm: Tensor) -> Tensor:
        """Map the L2 norm over the pixels to factors, [B, C]."""
        return self.gamma * (norm / (norm.mean(1, keepdim=True) + 1e-6)) + 1


class FusedMLP(nn.Module):
    """A ConvMLP whose bias has moved to the identity path."""

    def __init__(self, mlp: ConvMLP) -> None:
        super().__init__()
        self.expand = Pointwise(mlp.expand.weight, None)
        self.dwconv = DepthwiseConv(
            with_identity(mlp.dwconv.weight), bias_of(mlp.dwconv), bias_of(mlp.expand)
        )
        self.grn = ChannelResponse(mlp.grn)
        self.reduce = PointwiseSum(mlp.reduce.weight)

    @staticmethod
    def last_bias(mlp: ConvMLP) -> Tensor:
        """Return the constant that the MLP adds to every pixel at its end, [C]."""
        return bias_of(mlp.reduce) + mlp.reduce.weight.flatten(1) @ mlp.grn.beta.flatten()

    def forward(self, skip: Tensor, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """Add the MLP of ``x`` times a factor [B, C] to ``skip``, both [B, C, H, W]."""
        hidden, norm = self.dwconv.with_norm(self.expand(x, factor))
        return self.reduce(skip, hidden, self.grn(norm))

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ blocks."""
        return (
            *(self.expand.weight, *self.dwconv.operands()),
            *(self.grn.gamma, self.reduce.weight),
        )
