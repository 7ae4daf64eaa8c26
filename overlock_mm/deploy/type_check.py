"""The types of modules that can be folded.

Folding takes a module apart and reads the weights of its children. A derived or replaced module may
compute something else, so whatever is not listed here is refused instead of folded in part.
"""

from collections.abc import Mapping

from torch import nn

from overlock_mm.layers.basic import (
    GRN,
    ConvMLP,
    ConvNorm,
    DropPath,
    LayerNorm2d,
    LayerScale,
    ResidualDepthwiseConv,
    SqueezeExcite,
)
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.layers.context_residual import ContextResidual
from overlock_mm.layers.contmix import ContMix
from overlock_mm.layers.depthwise import DepthwiseConv2d, KeptDepthwiseConv2d
from overlock_mm.layers.dynamic_block import DynamicBlock, Fusion
from overlock_mm.layers.recompute import KeptConv2d
from overlock_mm.layers.reparam import DilatedBranch, DilatedReparamConv
from overlock_mm.layers.stem import Stem

Types = tuple[type[nn.Module], ...]

_NORMS: Types = (nn.BatchNorm2d, nn.SyncBatchNorm)
_SCALES: Types = (LayerScale, nn.Identity)

#: The types that the children of each type must have.
CHILDREN: Mapping[type[nn.Module], Mapping[str, Types]] = {
    Stem: {},
    GRN: {},
    LayerNorm2d: {},
    LayerScale: {},
    ResidualDepthwiseConv: {},
    ConvNorm: {'conv': (KeptConv2d,), 'norm': _NORMS},
    SqueezeExcite: {'squeeze': (nn.Conv2d,), 'excite': (nn.Conv2d,)},
    ConvMLP: {
        'expand': (KeptConv2d,),
        'dwconv': (ResidualDepthwiseConv,),
        'grn': (GRN,),
        'reduce': (KeptConv2d,),
    },
    DilatedBranch: {'conv': (DepthwiseConv2d,), 'norm': _NORMS},
    DilatedReparamConv: {
        'conv': (KeptDepthwiseConv2d,),
        'norm': _NORMS,
        'branches': (nn.ModuleDict,),
    },
    ContMix: {
        'query': (ConvNorm,),
        'key': (ConvNorm,),
        'kernel_proj': (nn.Conv2d,),
        'out_proj': (KeptConv2d,),
        'out_norm': _NORMS,
    },
    BasicBlock: {
        'dwconv': (ResidualDepthwiseConv,),
        'norm': (LayerNorm2d,),
        'large_conv': (DilatedReparamConv,),
        'large_norm': _NORMS,
        'se': (SqueezeExcite,),
        'mlp': (ConvMLP,),
        'drop_path': (DropPath,),
        'layer_scale': _SCALES,
    },
    Fusion: {
        'dwconv': (DepthwiseConv2d,),
        'norm': _NORMS,
        'proj': (KeptConv2d,),
        'grn': (GRN,),
    },
    DynamicBlock: {
        'context_scale': (LayerScale,),
        'prior_scale': (LayerScale,),
        'dwconv1': (ResidualDepthwiseConv,),
        'norm1': (LayerNorm2d,),
        'fusion': (Fusion,),
        'gate': (ConvNorm,),
        'local_conv': (DilatedReparamConv,),
        'local_norm': _NORMS,
        'contmix': (ContMix,),
        'se': (SqueezeExcite,),
        'out_norm': _NORMS,
        'out_proj': (KeptConv2d,),
        'layer_scale1': (LayerScale,),
        'dwconv2': (ResidualDepthwiseConv,),
        'norm2': (LayerNorm2d,),
        'mlp': (ConvMLP,),
        'layer_scale2': (LayerScale,),
        'drop_path': (DropPath,),
    },
    ContextResidual: {'norm': (LayerNorm2d,), 'proj': (nn.Conv2d,), 'layer_scale': (LayerScale,)},
}


def check_types(
    network: nn.Module, children: Mapping[type[nn.Module], Mapping[str, Types]] = CHILDREN
) -> None:
    """Demand that all modules of a network that folding takes apart are of the known types.

    Args:
        network: Parts of it that are fused already are not looked at.
        children: As in :data:`CHILDREN`, with further types if the network has them.

    Raises:
        TypeError: A module is of a type derived from a known one, or a child of a known one is of
            another type than it should be.
    """
    known = tuple(children)
    for path, module in network.named_modules():
        name = path or 'The network'
        if isinstance(module, known) and type(module) not in known:
            base = next(t.__name__ for t in type(module).__mro__ if t in known)
            raise _error(f'{name} is a {_name(module)}, derived from {base}', base)
        for child, part in module.named_children():
            allowed = children.get(type(module), {}).get(child, (type(part),))
            if type(part) not in allowed:
                names = ' or '.join(t.__name__ for t in allowed)
                raise _error(f'{name}.{child} is a {_name(part)}', names)


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _error(fact: str, types: str) -> TypeError:
    return TypeError(
        f'{fact}; only {types} itself can be folded. Remedy: deploy the network in training form, '
        'or put back the original.'
    )
