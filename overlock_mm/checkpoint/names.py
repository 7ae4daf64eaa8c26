"""Translation of official checkpoints' names to ours, as a pure function."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from overlock_mm.models.arch import STAGE_BLOCKS
from overlock_mm.models.official_names import (
    BASIC_BLOCK,
    DYNAMIC_BLOCK,
    lookup,
    rename_in_block,
)

Value = TypeVar('Value')

#: Tasks of the published checkpoints.
TASKS = ('classification', 'detection', 'segmentation')

_STAGES = {
    'blocks1': (STAGE_BLOCKS['base1'], BASIC_BLOCK),
    'blocks2': (STAGE_BLOCKS['base2'], BASIC_BLOCK),
    'blocks3': (STAGE_BLOCKS['base3'], BASIC_BLOCK),
    'blocks4': (STAGE_BLOCKS['overview'], BASIC_BLOCK),
    'sub_blocks3': (STAGE_BLOCKS['focus3'], DYNAMIC_BLOCK),
    'sub_blocks4': (STAGE_BLOCKS['focus4'], DYNAMIC_BLOCK),
}
_BLOCK = re.compile(r'(?P<stage>blocks[1-4]|sub_blocks[34])\.(?P<index>\d+)\.(?P<rest>.+)')

_BACKBONE = {
    'patch_embed1.0': 'base_net.downsamples.0.0.conv',
    'patch_embed1.1': 'base_net.downsamples.0.0.norm',
    'patch_embed1.3': 'base_net.downsamples.0.2.conv',
    'patch_embed1.4': 'base_net.downsamples.0.2.norm',
    'patch_embed1.6': 'base_net.downsamples.0.4.conv',
    'patch_embed1.7': 'base_net.downsamples.0.4.norm',
    'patch_embed1.9': 'base_net.downsamples.0.6.conv',
    'patch_embed1.10': 'base_net.downsamples.0.6.norm',
    'patch_embed2.0': 'base_net.downsamples.1.conv',
    'patch_embed2.1': 'base_net.downsamples.1.norm',
    'patch_embed3.0': 'base_net.downsamples.2.conv',
    'patch_embed3.1': 'base_net.downsamples.2.norm',
    'patch_embed4.0': 'overview_net.downsample.conv',
    'patch_embed4.1': 'overview_net.downsample.norm',
    'high_level_proj': 'focus_net.prior_proj',
    'patch_embedx.x_proj.0': 'focus_net.downsample_features.conv',
    'patch_embedx.x_proj.1': 'focus_net.downsample_features.norm',
    'patch_embedx.h_proj.0': 'focus_net.downsample_context.conv',
    'patch_embedx.h_proj.1': 'focus_net.downsample_context.norm',
}

_OUTPUT_NORMS = {f'extra_norm.{i}': f'norm{i}' for i in range(4)}

_CONTEXT_RESIDUAL = {
    'extra_norm.4': 'overview_residual.norm',
    'h_proj.0': 'overview_residual.proj',
    'h_proj.1': 'overview_residual.layer_scale',
}

_HEAD = {
    'head.0': 'head.proj.conv',
    'head.1': 'head.proj.norm',
    'head.4': 'head.fc',
    'aux_head.0': 'head.aux_norm',
    'aux_head.2': 'head.aux_fc',
}

_TASK_PARTS: dict[str, dict[str, str]] = {
    'classification': {},
    'detection': {**_OUTPUT_NORMS, **_CONTEXT_RESIDUAL},
    'segmentation': _OUTPUT_NORMS,
}


def _rename(name: str, task: str) -> str | None:
    """Return our name for an official one, or None if the task's network has no such tensor."""
    block = _BLOCK.fullmatch(name)
    if block:
        prefix, table = _STAGES[block['stage']]
        inner = rename_in_block(block['rest'], table)
        return inner and f'backbone.{prefix}.{block["index"]}.{inner}'
    if task == 'classification' and (head := lookup(name, _HEAD)):
        return head
    ours = lookup(name, {**_BACKBONE, **_TASK_PARTS[task]})
    return ours and f'backbone.{ours}'


def is_official(names: Iterable[str]) -> bool:
    """Return whether these are names of an official checkpoint, of a network or a full model."""
    return any(name.removeprefix('backbone.').startswith('patch_embed1.') for name in names)


def official_task(names: Iterable[str]) -> str:
    """Return the task that official names belong to, identified by the parts that only it has."""
    modules = {name.removeprefix('backbone.').split('.')[0] for name in names}
    if 'h_proj' in modules:
        return 'detection'
    return 'segmentation' if 'extra_norm' in modules else 'classification'


def convert_official(state_dict: Mapping[str, Value], task: str) -> dict[str, Value]:
    """Rename an official state dict to that of the OpenMMLab 2.x model.

    A pure function: it renames, it does not copy or change tensors.

    Args:
        state_dict: Official names. Either a bare network, or a full detector or
            segmentor, whose network is below ``backbone.`` and whose other parts
            pass through.
        task: ``'classification'``, ``'detection'`` or ``'segmentation'``.

    Returns:
        Keys ``backbone.…``, for classification also ``head.…``, in the given order.

    Raises:
        ValueError: Unknown task, or names that the task's network does not have.
    """
    if task not in TASKS:
        raise ValueError(f'task must be one of {", ".join(TASKS)}, got {task!r}.')
    full_model = any(name.startswith('backbone.') for name in state_dict)
    converted: dict[str, Value] = {}
    unknown = []
    for name, value in state_dict.items():
        if full_model and not name.startswith('backbone.'):
            converted[name] = value
            continue
        ours = _rename(name.removeprefix('backbone.'), task)
        if ours is None:
            unknown.append(name)
        else:
            converted[ours] = value
    if unknown:
        hint = ''
        if is_official(state_dict) and official_task(state_dict) != task:
            hint = f' They look like a {official_task(state_dict)} network.'
        raise ValueError(
            f'{len(unknown)} of {len(state_dict)} names are not those of an official {task} '
            f'network, first {", ".join(unknown[:3])}.{hint}'
        )
    return converted
