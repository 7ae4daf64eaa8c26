"""Conversion of official checkpoint files to those of the OpenMMLab 2.x models."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from overlock_mm.checkpoint.errors import CheckpointError, CheckpointMismatchError
from overlock_mm.checkpoint.io import state_dict_of
from overlock_mm.checkpoint.loading import check_compatible, form_of, likely_variant
from overlock_mm.checkpoint.names import convert_official, is_official, official_task
from overlock_mm.models.overlock import OverLoCK

#: What the backbone of each task's network is built with.
_BACKBONES: dict[str, dict[str, Any]] = {
    'classification': dict(out_indices=(3, 4), output_norm=False),
    'detection': dict(context_residual=True),
    'segmentation': {},
}
# The parts of Mask R-CNN, Cascade Mask R-CNN and UperNet. Their tensors have the same names in
# both generations (mmdet 2.x and 3.x, mmseg 0.x and 1.x), so they pass through.
_PARTS = {
    'classification': ('head',),
    'detection': ('neck', 'rpn_head', 'roi_head'),
    'segmentation': ('decode_head', 'auxiliary_head'),
}
_AUXILIARY = ('head.aux_norm.', 'head.aux_fc.')


@dataclass(frozen=True)
class OfficialModel:
    """The content of an official file.

    Args:
        task: One of ``overlock_mm.checkpoint.TASKS``.
        variant: Name of the variant.
        form: One of :data:`overlock_mm.checkpoint.FORMS`.
        model: ``'classifier'``, ``'mask_rcnn'``, ``'cascade'``, ``'upernet'`` or ``'backbone'``.
    """

    task: str
    variant: str
    form: str
    model: str

    @property
    def deploy(self) -> bool:
        """Whether it is for inference, so that the config is a ``*_deploy`` one."""
        return self.form != 'training'

    @property
    def config(self) -> str | None:
        """The config that it is for; None for a bare backbone."""
        suffix = '_deploy' if self.deploy else ''
        name = f'overlock_{self.variant}'
        # A file does not reveal Mask R-CNN's schedule; the models are the same.
        schedule = '' if self.deploy else '_1x'
        return {
            'classifier': f'configs/classification/{name}{suffix}.py',
            'mask_rcnn': f'configs/detection/mask_rcnn_{name}{schedule}{suffix}.py',
            'cascade': f'configs/detection/cascade_{name}{suffix}.py',
            'upernet': f'configs/segmentation/upernet_{name}{suffix}.py',
        }.get(self.model)


def convert_file(
    content: Mapping[str, Any], source: str, deploy: bool = False
) -> tuple[dict[str, Any], OfficialModel, list[str]]:
    """Convert the content of an official file to that of a checkpoint for our configs.

    Task, variant and form are recognised by the tensors. The names of classes that the 1.x
    generation kept as ``meta['CLASSES']`` become ``meta['dataset_meta']``, from where
    the inferencers of the 2.x generation take them; optimizer states are left out.

    Args:
        content: Content of the file, as :func:`overlock_mm.checkpoint.read_checkpoint` returns it.
        source: What to call the file in messages.
        deploy: Fuse a file in training form too, for the ``*_deploy`` configs. A file in
            reparameterized form is always fused.

    Returns:
        The new content (``state_dict`` and ``meta``), what the file holds after conversion, and
        a report of one sentence per line.

    Raises:
        CheckpointError: It is not an official file of a published variant.
        CheckpointMismatchError: It lacks tensors, has foreign ones or ones of wrong shape.
    """
    state_dict = state_dict_of(content, source)
    converted, official = _renamed(state_dict, source)
    report = [
        f'Recognised {_describe(official)}: {len(state_dict)} tensors.',
        f'Renamed {len(converted.keys() - state_dict.keys())} of them.',
    ]
    backbone = _checked_backbone(converted, official, source)

    if deploy or official.deploy:
        converted, sentences = _fused(converted, backbone)
        report += sentences
        official = replace(official, form='fused')
    meta, sentences = _converted_meta(content, official)
    return {'state_dict': converted, 'meta': meta}, official, report + sentences


def _renamed(
    state_dict: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], OfficialModel]:
    """Return the tensors of an official file under our names, and what they are of."""
    if not is_official(state_dict):
        raise CheckpointError(
            f'{source} does not have the names of an official checkpoint; it begins with '
            f'{", ".join(list(state_dict)[:3])}. Files of this package need no conversion.'
        )
    task = official_task(state_dict)
    try:
        converted = convert_official(state_dict, task)
    except ValueError as error:
        raise CheckpointError(f'{source}: {error}') from error
    variant = likely_variant(converted)
    if variant is None:
        raise CheckpointError(
            f'{source} is an official {task} network, but of none of the published widths and '
            'depths.'
        )
    model = _model_name(converted, task, source)
    return converted, OfficialModel(task, variant, form_of(converted), model)


def _fused(
    converted: Mapping[str, Tensor], backbone: OverLoCK
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with a fused backbone and without what only training uses; a report."""
    backbone.load_state_dict(_below(converted, 'backbone.'))
    backbone.switch_to_deploy()
    fused = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    rest = {k: v for k, v in converted.items() if not k.startswith('backbone.')}
    kept = {k: v for k, v in rest.items() if not k.startswith(_AUXILIARY)}
    report = [f'Fused the backbone: its {len(converted) - len(rest)} tensors became {len(fused)}.']
    if len(kept) < len(rest):
        report.append(
            f'Left out {len(rest) - len(kept)} tensors of the auxiliary classifier, which is used '
            'in training only.'
        )
    return {**fused, **kept}, report


def _describe(official: OfficialModel) -> str:
    return (
        f'task {official.task} ({official.model}), variant {official.variant!r}, '
        f'{official.form} form'
    )


def _model_name(names: Mapping[str, Tensor], task: str, source: str) -> str:
    """Return the name of the model around the backbone, identified by its other parts."""
    parts = {name.split('.')[0] for name in names} - {'backbone'}
    if not parts:
        return 'backbone'
    lacking, foreign = set(_PARTS[task]) - parts, parts - set(_PARTS[task])
    if lacking or foreign:
        raise CheckpointMismatchError(
            f'{source} should have the parts {", ".join(_PARTS[task])} beside its {task} backbone'
            + (f'; it lacks {", ".join(sorted(lacking))}' if lacking else '')
            + (f'; it also has {", ".join(sorted(foreign))}' if foreign else '')
            + '.'
        )
    if task == 'classification':
        return 'classifier'
    if task == 'segmentation':
        return 'upernet'
    return 'cascade' if 'roi_head.bbox_head.0.fc_cls.weight' in names else 'mask_rcnn'


def _checked_backbone(
    converted: Mapping[str, Tensor], official: OfficialModel, source: str
) -> OverLoCK:
    """Build a network of the recognised kind, and check that its tensors are those of the file."""
    backbone = OverLoCK(official.variant, **_BACKBONES[official.task])
    if official.form == 'reparameterized':
        backbone.reparameterize()
    check_compatible(backbone, _below(converted, 'backbone.'), source)
    return backbone.to(next(iter(converted.values())).dtype)


def _below(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def _converted_meta(
    content: Mapping[str, Any], official: OfficialModel
) -> tuple[dict[str, Any], list[str]]:
    old = content.get('meta')
    old = old if isinstance(old, Mapping) else {}
    meta: dict[str, Any] = {
        'overlock': {'task': official.task, 'variant': official.variant, 'form': official.form}
    }
    sentences = []
    dataset = {
        new: old[key]
        for key, new in (('CLASSES', 'classes'), ('PALETTE', 'palette'))
        if old.get(key) is not None
    }
    if dataset:
        meta['dataset_meta'] = dataset
        sentences.append(f'Kept the {", ".join(dataset)} of its data set.')
    dropped = [
        key
        for key in content
        if key not in ('state_dict', 'model', 'meta') and not isinstance(content[key], Tensor)
    ]
    if dropped:
        sentences.append(f'Left out {", ".join(map(str, dropped))}.')
    return meta, sentences
