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


@cache
def _read(name: str):
    with gzip.open(DATA / name, 'rt') as file:
        return json.load(file)


def manifest(task: str, variant: str, form: str) -> dict[str, list[int]]:
    """Official tensor names and shapes; form 'train' or 'deploy'."""
    return _read('manifest.json.gz')[task][variant][form]


def golden_cases() -> list[dict]:
    return _read('golden.json.gz')


def case_id(case: dict) -> str:
    size = 'x'.join(str(n) for n in case['input'])
    return f'{case["task"]}-{case["variant"]}-{size}-{case["mode"]}'


def official_state_dict(task: str, variant: str, form: str = 'train') -> dict[str, Tensor]:
    """Official names, values by the recipe, float64 (integer for counters)."""
    arrays = recipe.state_dict(manifest(task, variant, form))
    return {
        name: torch.as_tensor(a, dtype=torch.int64 if name.endswith('tracked') else torch.float64)
        for name, a in arrays.items()
    }


def build_model(
    task: str, variant: str, deploy: bool = False, auxiliary: bool = True
) -> torch.nn.Module:
    """Our model of a task, its network below `backbone`."""
    if task == 'cls':
        form = dict(out_indices=(3, 4), output_norm=False)
        head = dict(
            type=OverLoCKClsHead,
            num_classes=1000,
            in_channels=(ARCHS[variant].pyramid_channels[3], ARCHS[variant].channels[3]),
            auxiliary=auxiliary,
        )
        backbone = dict(type=OverLoCK, arch=variant, deploy=deploy, **form)
        return ImageClassifier(backbone=backbone, head=head)
    model = torch.nn.Module()
    model.backbone = OverLoCK(variant, context_residual=task == 'det', deploy=deploy)
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
