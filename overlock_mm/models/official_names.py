"""The blocks' parameter names in official checkpoints, and ours."""

import re
from collections.abc import Mapping

# The tables map modules, official to ours; the parameter's own name (weight, bias,
# running_mean, ...) stays.
_REPARAM = {'lk_origin': 'conv', 'origin_bn': 'norm'}
_DILATED_BRANCH = re.compile(r'dil_(?P<part>conv|bn)_k(?P<size>\d+)_(?P<dilation>\d+)')

BASIC_BLOCK = {
    'dwconv': 'dwconv',
    'proj.0': 'norm',
    'proj.1': 'large_conv',
    'proj.2': 'large_norm',
    'proj.3.proj.1': 'se.squeeze',
    'proj.3.proj.3': 'se.excite',
    'proj.4': 'mlp.expand',
    'proj.6': 'mlp.dwconv',
    'proj.7': 'mlp.grn',
    'proj.8': 'mlp.reduce',
    'ls': 'layer_scale',
}

_SHARED_BY_DYNAMIC_BLOCKS = {
    'dwconv1': 'dwconv1',
    'norm1': 'norm1',
    'gate.0': 'gate.conv',
    'gate.1': 'gate.norm',
    'lepe.0': 'local_conv',
    'lepe.1': 'local_norm',
    'weight_query.0': 'contmix.query.conv',
    'weight_query.1': 'contmix.query.norm',
    'weight_key.1': 'contmix.key.conv',
    'weight_key.2': 'contmix.key.norm',
    'weight_proj': 'contmix.kernel_proj',
    'rpb1': 'contmix.rpb_small',
    'rpb2': 'contmix.rpb_large',
    'se_layer.proj.1': 'se.squeeze',
    'se_layer.proj.3': 'se.excite',
    'proj.0': 'out_norm',
    'proj.1': 'out_proj',
    'ls1': 'layer_scale1',
    'dwconv2': 'dwconv2',
    'norm2': 'norm2',
    'mlp.0': 'mlp.expand',
    'mlp.2': 'mlp.dwconv',
    'mlp.3': 'mlp.grn',
    'mlp.4': 'mlp.reduce',
    'ls2': 'layer_scale2',
}

#: Names in the network's block.
DYNAMIC_BLOCK = {
    **_SHARED_BY_DYNAMIC_BLOCKS,
    'x_scale': 'context_scale',
    'h_scale': 'prior_scale',
    'fusion.0': 'fusion.dwconv',
    'fusion.1': 'fusion.norm',
    'fusion.3': 'fusion.proj',
    'fusion.4': 'fusion.grn',
    'dyconv_proj.0': 'contmix.out_proj',
    'dyconv_proj.1': 'contmix.out_norm',
}

#: Parameter names of the standalone block.
CONTMIX_BLOCK = {
    **_SHARED_BY_DYNAMIC_BLOCKS,
    'weight_value.0': 'value.conv',
    'weight_value.1': 'value.norm',
    'fusion_proj.0': 'contmix.out_proj',
    'fusion_proj.1': 'contmix.out_norm',
}


def lookup(name: str, table: Mapping[str, str]) -> str | None:
    """Translate the name of a parameter, or of the module that owns it."""
    if name in table:
        return table[name]
    module, _, parameter = name.rpartition('.')
    return f'{table[module]}.{parameter}' if module in table else None


def _rename_in_reparam(name: str) -> str | None:
    """Translate the name of a parameter within an official reparameterized convolution."""
    module, _, parameter = name.rpartition('.')
    branch = _DILATED_BRANCH.fullmatch(module)
    if branch:
        part = 'norm' if branch['part'] == 'bn' else 'conv'
        return f'branches.k{branch["size"]}_d{branch["dilation"]}.{part}.{parameter}'
    return lookup(name, _REPARAM)


def rename_in_block(name: str, table: Mapping[str, str]) -> str | None:
    """Return our name for an official one, or None if the block has no such tensor."""
    for reparam in ('proj.1.', 'lepe.0.'):
        if name.startswith(reparam):
            inner = _rename_in_reparam(name.removeprefix(reparam))
            if inner:
                return f'{table[reparam[:-1]]}.{inner}'
    return lookup(name, table)
