"""Folding of the network's blocks: the fused form of each."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.deploy import one_call
from overlock_mm.deploy.layers import (
    ChannelGate,
    ChannelResponse,
    DepthwiseConv,
    FusedMLP,
    Pointwise,
    PointwiseSum,
    SkipNorm,
    bias_of,
    constant,
    fold_contmix,
    fuse_bn_pointwise,
    operands_of_contmix,
)
from overlock_mm.deploy.type_check import check_types
from overlock_mm.layers.basic import (
    ConvNorm,
)
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.layers.context_residual import ContextResidual
from overlock_mm.layers.dynamic_block import DynamicBlock, Fusion
from overlock_mm.layers.reparam import DilatedReparamConv, fuse_conv_bn
from overlock_mm.layers.stem import Stem
from overlock_mm.ops.precision import compute_dtype

#: Largest difference between the forms in float64, as part of an output's largest value.
FOLDING_TOLERANCE = 1e-9


def reparameterize(network: nn.Module) -> None:
    """Bring a network from training form into the reparameterized one, in place.

    Raises:
        TypeError: A module is not of the type that can be folded; the network is as before.
    """
    check_types(network)
    for module in network.modules():
        if isinstance(module, DilatedReparamConv):
            module.reparameterize()


@torch.no_grad()
def fuse(network: nn.Module) -> None:
    """Bring a network from any form into the fused one, in place.

    Raises:
        TypeError: A module is not of the type that can be folded; the network is as before.
    """
    reparameterize(network)
    _fuse_children(network)
    network.requires_grad_(False)


@torch.no_grad()
def check_fusing(network: Any, image_channels: int) -> None:
    """Fuse copies of a backbone in float64 and compare outputs for an image of noise.

    One copy has the network's batch-norm statistics, another random ones: those of an untrained
    network would hide an error.

    Args:
        network: An ``OverLoCK`` in another form; it is not changed.
        image_channels: Channels of its images.

    Raises:
        RuntimeError: An output differs by more than :data:`FOLDING_TOLERANCE`.
    """
    generator = torch.Generator('cpu').manual_seed(0)
    for statistics in ('own', 'random'):
        copy = deepcopy(network).to('cpu', torch.float64).eval()
        if statistics == 'random':
            _randomize_statistics(copy, generator)
        image = torch.randn(
            1, image_channels, 96, 64, generator=generator, dtype=torch.float64, device='cpu'
        )
        expected = copy(image)
        copy.switch_to_deploy()
        for index, (out, reference) in enumerate(zip(copy(image), expected, strict=True)):
            error = ((out - reference).abs().max() / reference.abs().max()).item()
            if not error <= FOLDING_TOLERANCE:
                raise RuntimeError(
                    f'The fused form differs: output {index} by {error:.2g} of its largest value '
                    f'in float64, with {statistics} batch-norm statistics; {FOLDING_TOLERANCE:.0g} '
                    'is allowed. Please report this with the config.'
                )


def _randomize_statistics(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            mean, var = cast(Tensor, module.running_mean), cast(Tensor, module.running_var)
            mean.normal_(std=0.5, generator=generator)
            var.uniform_(0.5, 2, generator=generator)


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        make_fused = _FUSED.get(type(child))
        if make_fused is None:
            _fuse_children(child)
        else:
            setattr(module, name, make_fused(child).train(child.training))


def fold_conv_norm(layer: ConvNorm) -> nn.Conv2d:
    """Fold the norm into the convolution."""
    weight, bias = fuse_conv_bn(layer.conv.weight, None, layer.norm)
    layer.conv.weight = constant(weight.contiguous(memory_format=torch.channels_last))
    layer.conv.bias = constant(bias)
    return layer.conv


def fold_context_residual(module: ContextResidual) -> nn.Sequential:
    """Fold the layer scale into the projection."""
    scale = module.layer_scale
    proj = module.proj
    proj.bias = constant(bias_of(proj) * scale.weight.flatten() + scale.bias)
    proj.weight = constant(proj.weight * scale.weight)
    return nn.Sequential(module.norm, proj)


def _fold_local_conv(
    conv: DilatedReparamConv, norm: nn.modules.batchnorm._BatchNorm
) -> DepthwiseConv:
    return DepthwiseConv(*fuse_conv_bn(conv.conv.weight, bias_of(conv.conv), norm))


def fold_stem(stem: Stem) -> nn.Sequential:
    """Fold the norms into the four convolutions."""
    layers = (fold_conv_norm(m) if isinstance(m, ConvNorm) else m for m in stem.children())
    return nn.Sequential(*layers)


class FusedBlock(nn.Module):
    """A :class:`BasicBlock` in five passes over maps and two matrix products."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.skip_norm = SkipNorm(
            block.dwconv, block.norm, block.layer_scale, FusedMLP.last_bias(block.mlp)
        )
        self.large_conv = _fold_local_conv(block.large_conv, block.large_norm)
        self.se = ChannelGate(block.se)
        self.mlp = FusedMLP(block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D, H, W] to the same shape."""
        operands = one_call.operands_of(self, x)
        if operands is not None:
            return one_call.fused_block(x, operands, self.skip_norm.eps)
        skip, x = self.skip_norm(x)
        x, mean = self.large_conv.with_mean(x)
        return self.mlp(skip, x, self.se(mean))

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ block."""
        return (
            *(*self.skip_norm.operands(), *self.large_conv.operands()),
            *(*self.se.operands(), *self.mlp.operands()),
        )


class FusedFusion(nn.Module):
    """A :class:`Fusion` without its batch norm."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(
            *fuse_conv_bn(fusion.dwconv.weight, bias_of(fusion.dwconv), fusion.norm)
        )
        self.proj = Pointwise(fusion.proj.weight, bias_of(fusion.proj))
        self.grn = ChannelResponse(fusion.grn)
        self.beta = constant(fusion.grn.beta)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D + C4/4, H, W] to [B, D, H, W]."""
        x = self.proj(self.dwconv.with_gelu(x))
        # vector_norm is slow on channels_last maps. Squares overflow in float16.
        norm = x.to(compute_dtype(x.dtype)).square().sum((2, 3)).sqrt()
        factor = self.grn(norm).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), x, factor[..., None, None])

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ blocks."""
        return (*self.dwconv.operands(), *self.proj.operands(), self.grn.gamma, self.beta)


class FusedDynamicBlock(nn.Module):
    """A :class:`DynamicBlock` without batch norms and layer scales."""

    def __init__(self, block: DynamicBlock) -> None:
        super().__init__()
        self.split_sizes = block.split_sizes
        self.is_first = block.is_first
        if not block.is_first:
            self.context_weight = constant(block.context_scale.weight[..., 0])
            self.prior_weight = constant(block.prior_scale.weight[..., 0])
            bias = block.context_scale.bias + block.prior_scale.bias
            self.context_bias = constant(bias[:, None, None])

        weight, bias = fuse_bn_pointwise(
            block.out_norm, block.out_proj.weight, bias_of(block.out_proj)
        )
        self.skip_norm1 = SkipNorm(block.dwconv1, block.norm1, block.layer_scale1, bias)
        self.fusion = FusedFusion(block.fusion)
        self.gate = Pointwise(*fuse_conv_bn(block.gate.conv.weight, None, block.gate.norm))
        self.local_conv = _fold_local_conv(block.local_conv, block.local_norm)
        self.contmix = fold_contmix(block.contmix)
        self.se = ChannelGate(block.se)
        self.out_proj = PointwiseSum(weight)

        self.skip_norm2 = SkipNorm(
            block.dwconv2, block.norm2, block.layer_scale2, FusedMLP.last_bias(block.mlp)
        )
        self.mlp = FusedMLP(block.mlp)

    def forward(self, x: Tensor, context: Tensor, prior: Tensor) -> Tensor:
        """See :meth:`DynamicBlock.forward`."""
        if self.contmix.backend is None:
            operands = one_call.operands_of(self, x, context, prior)
            if operands is not None:
                return one_call.fused_dynamic_block(self, x, context, prior, operands)
        if not self.is_first:
            prior = torch.addcmul(self.context_bias, prior, self.prior_weight)
            context = torch.addcmul(prior, context, self.context_weight)
        skip, z = self.skip_norm1(torch.cat((x, context), 1))
        fused = self.fusion(z)
        query, key = z.split(self.split_sizes, 1)
        mixed = self.contmix(query, key, fused)
        y, mean = self.local_conv.with_mean(fused, mixed)
        y = y * F.silu(self.gate(fused), inplace=True)
        z = self.out_proj(skip, y, self.se(mean))

        skip, z = self.skip_norm2(z)
        return self.mlp(skip, z)

    @property
    def scale_count(self) -> int:
        """How many of the operands scale context and prior."""
        return 0 if self.is_first else 3

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ block."""
        scales = (
            () if self.is_first else (self.context_weight, self.prior_weight, self.context_bias)
        )
        return (
            *scales,
            *(*self.skip_norm1.operands(), *self.fusion.operands(), *self.gate.operands()),
            *(*self.local_conv.operands(), *operands_of_contmix(self.contmix)),
            *(*self.se.operands(), self.out_proj.weight),
            *(*self.skip_norm2.operands(), *self.mlp.operands()),
        )


_FUSED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Stem: fold_stem,
    ConvNorm: fold_conv_norm,
    BasicBlock: FusedBlock,
    DynamicBlock: FusedDynamicBlock,
    ContextResidual: fold_context_residual,
}
