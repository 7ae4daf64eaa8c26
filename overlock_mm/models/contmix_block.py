"""The authors' standalone block, for networks of any kind (YOLO necks, U-Nets, depth heads).

It needs only torch: neither OpenMMLab nor the rest of the network.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlock_mm.deploy.folding import reparameterize
from overlock_mm.deploy.layers import (
    ChannelGate,
    DepthwiseConv,
    FusedMLP,
    Pointwise,
    PointwiseSum,
    SkipNorm,
    bias_of,
    fold_contmix,
    fuse_bn_pointwise,
)
from overlock_mm.deploy.type_check import CHILDREN, Types, check_types
from overlock_mm.layers.basic import (
    ConvMLP,
    ConvNorm,
    DropPath,
    LayerNorm2d,
    LayerScale,
    ResidualDepthwiseConv,
    SqueezeExcite,
    build_norm,
    draw_truncated_normal,
)
from overlock_mm.layers.contmix import ContMix
from overlock_mm.layers.dynamic_block import DynamicBlock
from overlock_mm.layers.recompute import KeptConv2d, RecomputableBlock, recompute_in_backward
from overlock_mm.layers.reparam import DILATED_BRANCHES, DilatedReparamConv, fuse_conv_bn
from overlock_mm.models.official_names import CONTMIX_BLOCK, rename_in_block

_NORM = {'type': 'BN'}


class ContMixBlock(RecomputableBlock):
    """A gated dynamic block that maps [B, dim, H, W] to the same shape, for any H and W.

    Query, key and values of its ContMix come from one map; there is no context prior. The keywords
    are the authors'. State dicts with the authors' names load as they are, also where the block is
    a part of another network.

    Args:
        dim: Channels, divisible by ``4 * num_heads``.
        kernel_size: K of the large dynamic kernel and of the reparameterized convolution: 5, 7, 9,
            11, 13, 15, 17 or 19. A map with a side below K is upsampled before it is mixed.
        smk_size: K of the small dynamic kernel, odd, from 3 to ``kernel_size``.
        num_heads: Half the number of groups that have kernels of their own.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        res_scale: Whether the layer scales act on the identity paths instead of the branches.
        ls_init_value: Initial weight of the layer scales; None leaves them out.
        drop_path: Rate of stochastic depth of both branches.
        norm_layer: Makes the norm over channels from ``dim``.
        use_gemm: Accepted and ignored: the operator chooses its implementation by itself.
        deploy: Build the reparameterized form, as :meth:`reparm` leaves it.
        use_checkpoint: Keep only the input for the backward pass.
        **kwargs: Ignored with a warning, for configurations written for the authors' block.

    Raises:
        ValueError: ``dim``, ``kernel_size`` or ``smk_size`` breaks its rule.

    Example:
        >>> block = ContMixBlock(dim=64, kernel_size=13, num_heads=2)
        >>> block(torch.rand(1, 64, 20, 33)).shape
        torch.Size([1, 64, 20, 33])
    """

    def __init__(
        self,
        dim: int = 64,
        kernel_size: int = 7,
        smk_size: int = 5,
        num_heads: int = 2,
        mlp_ratio: float = 4,
        res_scale: bool = False,
        ls_init_value: float | None = None,
        drop_path: float = 0,
        norm_layer: Callable[[int], Any] = LayerNorm2d,
        use_gemm: bool = False,
        deploy: bool = False,
        use_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _check(dim, kernel_size, smk_size, num_heads)
        if kwargs:
            warnings.warn(f'ContMixBlock ignores {", ".join(sorted(kwargs))}.', stacklevel=2)
        self.res_scale = res_scale
        self.recompute = 'blocks' if use_checkpoint else 'cheap'
        self.dwconv1 = ResidualDepthwiseConv(dim)
        self.norm1 = norm_layer(dim)
        self.gate = ConvNorm(dim, dim, 1, _NORM)
        self.local_conv = DilatedReparamConv(dim, kernel_size, _NORM)
        self.local_norm = build_norm(_NORM, dim)
        self.value = ConvNorm(dim, dim, 1, _NORM)
        self.contmix = ContMix(dim, dim, dim, num_heads, kernel_size, smk_size, _NORM)
        for table in (self.contmix.rpb_small, self.contmix.rpb_large):
            draw_truncated_normal(table)
        self.se = SqueezeExcite(dim)
        self.out_norm = build_norm(_NORM, dim)
        self.out_proj = KeptConv2d(dim, dim, 1)
        self.dwconv2 = ResidualDepthwiseConv(dim)
        self.norm2 = norm_layer(dim)
        self.mlp = ConvMLP(dim, int(dim * mlp_ratio))
        self.layer_scale1, self.layer_scale2 = (
            nn.Identity() if ls_init_value is None else LayerScale(dim, float(ls_init_value))
            for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)
        self.folded: FusedContMixBlock | None = None  # its name is in checkpoints
        self.register_load_state_dict_pre_hook(_accept_official_names)
        if deploy:
            self.reparm()

    @recompute_in_backward
    def forward(self, x: Tensor) -> Tensor:
        """Map [B, dim, H, W] to the same shape."""
        if self.folded is not None:
            return self.folded(x)
        x = self.dwconv1(x)
        z = self.norm1(x)
        (upsampled,) = self.contmix.upsample(z)
        height, width = x.shape[-2:]
        mixed = self.contmix(upsampled, upsampled, self.value(upsampled), (height, width))
        local = self.local_norm(self.local_conv(z))
        y = self.se(mixed + local) * F.silu(self.gate(z))
        y = self.out_proj(self.out_norm(y))
        x = self._add(x, y, self.layer_scale1)

        x = self.dwconv2(x)
        return self._add(x, self.mlp(self.norm2(x)), self.layer_scale2)

    def _add(self, skip: Tensor, branch: Tensor, layer_scale: nn.Module) -> Tensor:
        if self.res_scale:
            return layer_scale(skip) + self.drop_path(branch)
        return skip + self.drop_path(layer_scale(branch))

    @property
    def form(self) -> str:
        """The current form: one of :data:`overlock_mm.layers.forms.FORMS`."""
        return self.local_conv.form if self.folded is None else 'fused'

    def reparameterize(self) -> None:
        """Fold the dilated branches into the large convolution. Idempotent.

        Raises:
            TypeError: The convolution is of another type than the original; it is as before.
        """
        if self.form == 'training':
            reparameterize(self.local_conv)

    def reparm(self) -> None:
        """The authors' name for :meth:`reparameterize`."""
        self.reparameterize()

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fuse the block: fold all that is constant in evaluation. Idempotent.

        Afterwards the block cannot be trained.

        Raises:
            TypeError: The block or a part of it is of another type than the original, as where
                ``norm_layer`` made another norm than :class:`LayerNorm2d`; it is as before.
        """
        if self.form == 'fused':
            return
        check_types(self, {**CHILDREN, ContMixBlock: _CHILDREN})
        self.reparameterize()
        folded = FusedContMixBlock(self)
        for name in list(self._modules):
            delattr(self, name)
        self.folded = folded.requires_grad_(False).train(self.training)


#: Types that its children must have to be folded.
_CHILDREN: dict[str, Types] = {
    **{
        name: types
        for name, types in CHILDREN[DynamicBlock].items()
        if name not in ('context_scale', 'prior_scale', 'fusion')
    },
    'value': (ConvNorm,),
    'layer_scale1': (LayerScale, nn.Identity),
    'layer_scale2': (LayerScale, nn.Identity),
}


class FusedContMixBlock(nn.Module):
    """A :class:`ContMixBlock` without batch norms and layer scales.

    Args:
        block: A block in reparameterized form; it is not changed.
    """

    def __init__(self, block: ContMixBlock) -> None:
        super().__init__()
        block = deepcopy(block)
        skip_scales: list[nn.Module] = [block.layer_scale1, block.layer_scale2]
        if not block.res_scale:
            for conv, scale in zip((block.out_proj, block.mlp.reduce), skip_scales, strict=True):
                _scale_output(conv, scale)
            skip_scales = [nn.Identity(), nn.Identity()]
        weight, bias = fuse_bn_pointwise(
            block.out_norm, block.out_proj.weight, bias_of(block.out_proj)
        )
        self.skip_norm1 = SkipNorm(block.dwconv1, block.norm1, skip_scales[0], bias)
        self.gate = Pointwise(*fuse_conv_bn(block.gate.conv.weight, None, block.gate.norm))
        self.local_conv = DepthwiseConv(
            *fuse_conv_bn(
                block.local_conv.conv.weight, bias_of(block.local_conv.conv), block.local_norm
            )
        )
        self.value = Pointwise(*fuse_conv_bn(block.value.conv.weight, None, block.value.norm))
        self.contmix = fold_contmix(block.contmix)
        self.se = ChannelGate(block.se)
        self.out_proj = PointwiseSum(weight)
        self.skip_norm2 = SkipNorm(
            block.dwconv2, block.norm2, skip_scales[1], FusedMLP.last_bias(block.mlp)
        )
        self.mlp = FusedMLP(block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, dim, H, W] to the same shape."""
        skip, z = self.skip_norm1(x)
        (upsampled,) = self.contmix.upsample(z)
        height, width = x.shape[-2:]
        mixed = self.contmix(upsampled, upsampled, self.value(upsampled), (height, width))
        y, mean = self.local_conv.with_mean(z, mixed)
        y = y * F.silu(self.gate(z), inplace=True)
        skip, z = self.skip_norm2(self.out_proj(skip, y, self.se(mean)))
        return self.mlp(skip, z)


def _scale_output(conv: nn.Conv2d, scale: nn.Module) -> None:
    """Fold a layer scale into the 1 x 1 convolution before it, in place."""
    if isinstance(scale, LayerScale):
        conv.bias = nn.Parameter(bias_of(conv) * scale.weight.flatten() + scale.bias)
        conv.weight = nn.Parameter(conv.weight * scale.weight)


def _check(dim: int, kernel_size: int, smk_size: int, num_heads: int) -> None:
    if dim % (4 * num_heads):
        raise ValueError(
            f'dim must be divisible by 4 * num_heads (two kernel sizes, two groups for each head), '
            f'got dim {dim} and num_heads {num_heads}. Use a multiple of {4 * num_heads}.'
        )
    if kernel_size not in DILATED_BRANCHES:
        known = ', '.join(str(k) for k in sorted(DILATED_BRANCHES))
        raise ValueError(f'kernel_size must be one of {known}, got {kernel_size}.')
    if smk_size % 2 == 0 or not 3 <= smk_size <= kernel_size:
        raise ValueError(
            f'smk_size must be odd, at least 3 and at most kernel_size ({kernel_size}), '
            f'got {smk_size}.'
        )


def _accept_official_names(
    block: ContMixBlock,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Rename the authors' tensors, and explain a state dict of another form."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        ours = rename_in_block(name.removeprefix(prefix), CONTMIX_BLOCK)
        if ours is not None:
            state_dict[prefix + ours] = state_dict.pop(name)
    where = prefix.rstrip('.') or 'The state dict'
    trained = f'{prefix}local_conv.norm.weight' in state_dict
    if trained and block.form != 'training':
        error_msgs.append(
            f'{where} holds a ContMixBlock in training form. Remedy: build it with deploy=False, '
            'load, then call reparm() or switch_to_deploy().'
        )
    reparameterized = f'{prefix}local_conv.conv.bias' in state_dict
    if reparameterized and block.form == 'training':
        error_msgs.append(
            f'{where} holds a ContMixBlock in reparameterized form. Remedy: build it with '
            'deploy=True.'
        )
