"""The official networks, rebuilt from manifests and seeds, and their golden outputs."""

import gzip
import json
from functools import cache
from pathlib import Path

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor

from overlock_mm import ARCHS, OverLoCK
from overlock_mm.checkpoint import convert_official
from overlock_mm.models.classifier import OverLoCKClsHead
from tests.data import recipe

DATA = Path(__file__).parent / 'data'
#: Task names of the data files -> ours.
TASK_NAMES = {'cls': 'classification', 'det': 'detection', 'seg': 'segmentation'}
VARIANTS = ('xt', 't', 's', 'b')
_MANIFEST_KEYS = {'training': 'train', 'reparameterized': 'deploy'}


@cache
def _read(name: str):
    with gzip.open(DATA / name, 'rt') as file:
        return json.load(file)


def manifest(task: str, variant: str, form: str) -> dict[str, list[int]]:
    """Official tensor names and shapes; form 'training' or 'reparameterized'."""
    return _read('manifest.json.gz')[task][variant][_MANIFEST_KEYS[form]]


def golden_cases() -> list[dict]:
    return _read('golden.json.gz')


def case_id(case: dict) -> str:
    size = 'x'.join(str(n) for n in case['input'])
    return f'{case["task"]}-{case["variant"]}-{size}-{case["mode"]}'


def official_state_dict(task: str, variant: str, form: str = 'training') -> dict[str, Tensor]:
    """Official names, values by the recipe, float64 (integer for counters)."""
    arrays = recipe.state_dict(manifest(task, variant, form))
    return {
        name: torch.as_tensor(a, dtype=torch.int64 if name.endswith('tracked') else torch.float64)
        for name, a in arrays.items()
    }


def build_model(
    task: str, variant: str, form: str = 'training', auxiliary: bool = True
) -> torch.nn.Module:
    """Our model of a task, its network below `backbone`, in training or reparameterized form."""
    if task == 'cls':
        outputs = dict(out_indices=(3, 4), output_norm=False)
        head = dict(
            type=OverLoCKClsHead,
            num_classes=1000,
            in_channels=(ARCHS[variant].pyramid_channels[3], ARCHS[variant].channels[3]),
            auxiliary=auxiliary,
        )
        model = ImageClassifier(backbone=dict(type=OverLoCK, arch=variant, **outputs), head=head)
    else:
        model = torch.nn.Module()
        model.backbone = OverLoCK(variant, context_residual=task == 'det')
    if form == 'reparameterized':
        model.backbone.reparameterize()
    return model


def load_official(task: str, variant: str) -> torch.nn.Module:
    """Our float64 model with the official network's weights."""
    model = build_model(task, variant).double()
    state_dict = convert_official(official_state_dict(task, variant), TASK_NAMES[task])
    model.load_state_dict(state_dict, strict=True)
    return model


def outputs_of(model: torch.nn.Module, task: str, image: Tensor) -> tuple[Tensor, ...]:
    """What the official network returns: logits (and auxiliary ones in training) or the pyramid."""
    features = model.backbone(image)
    if task != 'cls':
        return features
    logits = model.head(features)
    return (logits, model.head.forward_auxiliary(features)) if model.training else (logits,)


def _conv(name: str, out: int, inner: int, size: int, norm: bool = False) -> dict[str, tuple]:
    """Shapes of mmcv's ConvModule, of either generation."""
    shapes = {f'{name}.conv.weight': (out, inner, size, size)}
    if not norm:
        return {**shapes, f'{name}.conv.bias': (out,)}
    vectors = ('weight', 'bias', 'running_mean', 'running_var')
    return {
        **shapes,
        **{f'{name}.bn.{vector}': (out,) for vector in vectors},
        f'{name}.bn.num_batches_tracked': (),
    }


def _layer(name: str, out: int, *inner: int) -> dict[str, tuple]:
    return {f'{name}.weight': (out, *inner), f'{name}.bias': (out,)}


def _detector_heads(cascade: bool, widths: list[int], num_classes: int) -> dict[str, tuple]:
    """Names and shapes that mmdet 2.x wrote for Mask R-CNN and its cascade."""
    shapes: dict[str, tuple] = {}
    for i, width in enumerate(widths):
        shapes |= _conv(f'neck.lateral_convs.{i}', 256, width, 1)
        shapes |= _conv(f'neck.fpn_convs.{i}', 256, 256, 3)
    shapes |= _layer('rpn_head.rpn_conv', 256, 256, 3, 3)
    shapes |= _layer('rpn_head.rpn_cls', 3, 256, 1, 1) | _layer('rpn_head.rpn_reg', 12, 256, 1, 1)
    for stage in ('.0', '.1', '.2') if cascade else ('',):
        box, mask = f'roi_head.bbox_head{stage}', f'roi_head.mask_head{stage}'
        shapes |= _layer(f'{box}.fc_cls', num_classes + 1, 1024)
        shapes |= _layer(f'{box}.fc_reg', 4 * num_classes, 1024)
        shapes |= _layer(f'{box}.shared_fcs.0', 1024, 256 * 7 * 7)
        if cascade:
            for i in range(4):
                shapes |= _conv(f'{box}.shared_convs.{i}', 256, 256, 3, norm=True)
        else:
            shapes |= _layer(f'{box}.shared_fcs.1', 1024, 1024)
        for i in range(4):
            shapes |= _conv(f'{mask}.convs.{i}', 256, 256, 3)
        shapes |= _layer(f'{mask}.upsample', 256, 256, 2, 2)
        shapes |= _layer(f'{mask}.conv_logits', num_classes, 256, 1, 1)
    return shapes


def _segmentor_heads(widths: list[int], num_classes: int) -> dict[str, tuple]:
    """Names and shapes that mmseg 0.x wrote for UperNet with an FCN auxiliary head."""
    shapes = _layer('decode_head.conv_seg', num_classes, 512, 1, 1)
    for i in range(4):
        shapes |= _conv(f'decode_head.psp_modules.{i}.1', 512, widths[3], 1, norm=True)
    shapes |= _conv('decode_head.bottleneck', 512, widths[3] + 4 * 512, 3, norm=True)
    for i in range(3):
        shapes |= _conv(f'decode_head.lateral_convs.{i}', 512, widths[i], 1, norm=True)
        shapes |= _conv(f'decode_head.fpn_convs.{i}', 512, 512, 3, norm=True)
    shapes |= _conv('decode_head.fpn_bottleneck', 512, 4 * 512, 3, norm=True)
    shapes |= _layer('auxiliary_head.conv_seg', num_classes, 256, 1, 1)
    return shapes | _conv('auxiliary_head.convs.0', 256, widths[2], 3, norm=True)


def first_generation_file(model: str, variant: str, num_classes: int) -> dict:
    """Content of a training checkpoint as the 1.x generation of OpenMMLab wrote it.

    Args:
        model: 'mask_rcnn', 'cascade' or 'upernet'.
        variant: Of the backbone.
        num_classes: Of the heads.
    """
    widths = list(ARCHS[variant].pyramid_channels)
    if model == 'upernet':
        task, shapes = 'seg', _segmentor_heads(widths, num_classes)
    else:
        task, shapes = 'det', _detector_heads(model == 'cascade', widths, num_classes)
    state_dict = {
        f'backbone.{name}': value if name.endswith('tracked') else value.float()
        for name, value in official_state_dict(task, variant).items()
    }
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if name.endswith('tracked'):
            state_dict[name] = torch.tensor(0)
        else:
            value = 0.01 * torch.randn(shape, generator=generator)
            state_dict[name] = value.abs() + 1 if name.endswith('running_var') else value
    return {
        'meta': {
            'epoch': 12,
            'iter': 87960,
            'mmcv_version': '1.7.1',
            'config': 'model = dict()',
            'CLASSES': tuple(f'class {i}' for i in range(num_classes)),
            'PALETTE': [[i, 0, 0] for i in range(num_classes)],
        },
        'state_dict': state_dict,
        'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-6}]},
    }
