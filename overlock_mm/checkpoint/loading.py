"""Loading of weights, with a report of what was loaded and whether the rest is expected."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmengine.logging import MMLogger
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from overlock_mm.checkpoint.errors import CheckpointMismatchError
from overlock_mm.checkpoint.io import read_checkpoint
from overlock_mm.checkpoint.names import convert_official, is_official, official_task
from overlock_mm.models.arch import ARCHS, STAGE_BLOCKS, STAGES
from overlock_mm.models.overlock import OverLoCK

#: Parts that a backbone may have and a file may lack, or the other way round: they
#: belong to the task, not to the variant.
_TASK_PARTS = re.compile(r'(norm[0-3]|overview_residual)\.')
_FUSE = 'Fuse the file with tools/deployment/switch_to_deploy.py'
#: What to do, by the forms of the file and of the model.
_REMEDIES = {
    ('training', 'fused'): f'{_FUSE}, or build the model with deploy=False.',
    ('reparameterized', 'fused'): f'{_FUSE}.',
    ('reparameterized', 'training'): f'{_FUSE}, and build the model with deploy=True.',
    ('fused', 'training'): 'Build the model with deploy=True.',
}
_SHOWN = 3


def likely_variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the name of the variant whose widths and depths these tensors have, if any.

    Args:
        state_dict: Our names, of a backbone or of a model with a ``backbone``.
    """
    blocks: dict[str, set[str]] = {}
    widths: dict[str, int] = {}
    paths = '|'.join(re.escape(path) for path in STAGE_BLOCKS.values())
    stage = re.compile(rf'(?:backbone\.)?({paths})\.(\d+)\.(.+)')
    for name, value in state_dict.items():
        match = stage.fullmatch(name)
        if match:
            blocks.setdefault(match[1], set()).add(match[2])
            if match[3] == 'se.excite.weight':
                widths[match[1]] = value.shape[0]
    stages = [STAGE_BLOCKS[name] for name in STAGES]
    depths = tuple(len(blocks.get(name, ())) for name in stages)
    channels = tuple(widths.get(name, 0) for name in stages[:4])
    for variant, arch in ARCHS.items():
        if (arch.channels, arch.depths) == (channels, depths):
            return variant
    return None


def _differences(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that model and file do not share, in the model's order."""
    own = model.state_dict()
    lines = []
    for name, value in own.items():
        if name not in state_dict:
            lines.append(f'{name}: not in the file')
        elif value.shape != state_dict[name].shape:
            shape = list(state_dict[name].shape)
            lines.append(f'{name}: {list(value.shape)} in the model, {shape} in the file')
    lines += [f'{name}: not in the model' for name in state_dict if name not in own]
    return lines


def form_of(names: Iterable[str]) -> str:
    """Return the form of a network from its tensors' names (ours): one of :data:`FORMS`."""
    names = tuple(names)
    if any('_conv.branches.' in name for name in names):
        return 'training'
    return 'reparameterized' if any('.large_norm.' in name for name in names) else 'fused'


def _mismatch(
    model: nn.Module, state_dict: Mapping[str, Tensor], lines: list[str], source: str
) -> CheckpointMismatchError:
    own = model.state_dict()
    parts = [f'{source} does not fit the model: {len(lines)} tensors differ, first:']
    parts += [f'  {line}' for line in lines[:_SHOWN]]
    theirs, ours = likely_variant(state_dict), likely_variant(own)
    if is_official(state_dict):
        parts.append(
            'The file has the names of an official checkpoint. Convert it first: '
            f'python tools/model_converters/convert_checkpoint.py {source} OUT.pth'
        )
    elif theirs != ours:
        parts.append(
            f'The file is of {_variant_name(theirs)}, the model of {_variant_name(ours)}. Use the '
            'config of that variant, or another file.'
        )
    elif (forms := (form_of(state_dict), form_of(own))) in _REMEDIES:
        parts.append(
            f'The file is in {forms[0]} form, the model in {forms[1]} form. {_REMEDIES[forms]}'
        )
    return CheckpointMismatchError('\n'.join(parts))


def _variant_name(variant: str | None) -> str:
    return f'variant {variant!r}' if variant else 'no published variant'


def check_compatible(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str = 'The checkpoint'
) -> None:
    """Check that a state dict has exactly the tensors of a model.

    Args:
        model: The whole model.
        state_dict: Our names.
        source: What to call the checkpoint in the message.

    Raises:
        CheckpointMismatchError: Names the first differing tensors and the likely variant.
    """
    lines = _differences(model, state_dict)
    if lines:
        raise _mismatch(model, state_dict, lines, source)


def load_pretrained(backbone: OverLoCK, path: str | Path, prefix: str | None = None) -> None:
    """Load a backbone from an official file or one of ours, and log a report.

    Takes classifiers, detectors and segmentors alike. LayerNorms of outputs and the
    context residual belong to the task: where the file lacks them they keep their
    initial weights, where the backbone lacks them they are left out. A fused backbone takes files
    in reparameterized form too, and fuses them.

    Args:
        backbone: In any form; a file in training form fits only a backbone in training form.
        path: A file or an http(s) address.
        prefix: Where the backbone is within the file; None finds it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file cannot be read.
        CheckpointMismatchError: It belongs to another variant or form.
    """
    source = str(path)
    state_dict = read_checkpoint(path)['state_dict']
    if is_official(state_dict):
        state_dict = convert_official(state_dict, official_task(state_dict))
    state_dict = _backbone_part(state_dict, prefix, source)

    if backbone.form == 'fused' and form_of(state_dict) == 'reparameterized':
        state_dict = _fused(backbone, state_dict, source)

    _check_apart_from_task(backbone, state_dict, source)
    own = backbone.state_dict()
    backbone.load_state_dict({k: v for k, v in state_dict.items() if k in own}, strict=False)
    logger = MMLogger.get_current_instance()
    logger.info('%s: loaded %d of %d tensors', source, len(own.keys() & state_dict), len(own))
    for names, what in (
        (
            own.keys() - state_dict.keys(),
            'keep their initial weights: the file is from another task',
        ),
        (state_dict.keys() - own.keys(), 'are ignored: this network does not have them'),
    ):
        if names:
            parts = sorted({name.split('.')[0] for name in names})
            logger.info('%s: %d tensors of %s %s', source, len(names), ', '.join(parts), what)


@WEIGHT_INITIALIZERS.register_module('OverLoCKPretrained')
class PretrainedOverLoCKInit:
    """The initializer behind an OverLoCK's ``init_cfg=dict(type='Pretrained', ...)``.

    Args:
        checkpoint: A file or an http(s) address.
        prefix: Where the backbone is within the file; None finds it.
        map_location: Accepted, as mmengine's initializer has it. Weights are read on the CPU and
            copied to the device of each parameter.
    """

    def __init__(
        self, checkpoint: str | Path, prefix: str | None = None, map_location: str = 'cpu'
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: OverLoCK) -> None:
        """Load the weights of a backbone."""
        load_pretrained(module, self.checkpoint, self.prefix)


def _check_apart_from_task(
    backbone: OverLoCK, state_dict: Mapping[str, Tensor], source: str
) -> None:
    lines = _differences(backbone, state_dict)
    wrong = [line for line in lines if not _TASK_PARTS.match(line) or 'in the model,' in line]
    if wrong:
        raise _mismatch(backbone, state_dict, wrong, source)


def _fused(backbone: OverLoCK, state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors of the fused form, computed from those of the reparameterized one."""
    twin = OverLoCK(
        backbone.arch,
        backbone.in_channels,
        backbone.out_indices,
        output_norm=backbone.output_norm,
        context_residual=backbone.context_residual,
    ).to(next(iter(state_dict.values())).dtype)
    twin.reparameterize()
    _check_apart_from_task(twin, state_dict, source)
    own = twin.state_dict()
    twin.load_state_dict({k: v for k, v in state_dict.items() if k in own}, strict=False)
    twin.switch_to_deploy()
    parts = {name.split('.')[0] for name in state_dict}
    fused = {k: v for k, v in twin.state_dict().items() if k.split('.')[0] in parts}
    return {**{k: v for k, v in state_dict.items() if k not in own}, **fused}


def _backbone_part(
    state_dict: dict[str, Tensor], prefix: str | None, source: str
) -> dict[str, Tensor]:
    if prefix is None:
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in state_dict) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not part:
        raise CheckpointMismatchError(
            f'{source} has no tensors below {prefix!r}; it begins with '
            f'{", ".join(list(state_dict)[:_SHOWN])}.'
        )
    return part
