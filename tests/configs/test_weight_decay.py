"""Weight decay of every parameter, against the rules of the libraries that ran the published code.

The rules are written down here once more, for the official names; the conversion of checkpoints
leads from these to ours.
"""

import pytest
import torch

from overlock_mm.checkpoint import convert_official
from tests import official
from tests.configs.conftest import build_optimizer

BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')
#: Tensors without weight decay, counted in the published networks: of the backbone and, for
#: ImageNet, of the whole classifier.
COUNTS = {
    'cls': dict(xt=604, t=1057, s=1455, b=1853),
    'det': dict(xt=42, t=66, s=86, b=106),
    'seg': dict(xt=40, t=64, s=84, b=104),
}
CASES = [
    (task, name.format(variant), variant)
    for task, name in (
        ('cls', 'classification/overlock_{}'),
        ('det', 'detection/mask_rcnn_overlock_{}_1x'),
        ('det', 'detection/mask_rcnn_overlock_{}_3x'),
        ('det', 'detection/cascade_overlock_{}'),
        ('seg', 'segmentation/upernet_overlock_{}'),
    )
    for variant in official.VARIANTS
    # The length of the run changes nothing; one variant of each is enough.
    if variant == 't' or not name.endswith(('_3x', 'detection/cascade_overlock_{}'))
]


def timm_excludes(name, shape):
    """``create_optimizer_v2(filter_bias_and_bn=True)`` of timm 0.6.12."""
    return len(shape) <= 1 or name.endswith('.bias')


def mmcv_excludes(name, shape):
    """Constructor of mmcv 1.7.2 with the published keys, found anywhere in the full name."""
    keys = ('absolute_pos_embed', 'relative_position_bias_table', 'norm')
    return any(key in f'backbone.{name}' for key in keys)


def published_decays(task, variant):
    """Our name -> whether the published run decayed it, for what is in the official manifest."""
    excludes = timm_excludes if task == 'cls' else mmcv_excludes
    decayed = {
        name: not excludes(name, shape)
        for name, shape in official.manifest(task, variant, 'training').items()
        if not name.endswith(BUFFERS)
    }
    return convert_official(decayed, official.TASK_NAMES[task])


def decays_of(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize(('task', 'name', 'variant'), CASES)
def test_every_parameter_is_decayed_as_published(task, name, variant, load, build):
    cfg = load(f'{name}.py')
    with torch.device('meta'):  # without memory
        model = build(cfg)
    optimizer = build_optimizer(model, cfg)
    ours = decays_of(model, optimizer)
    # Necks and heads of the first generation had the same names, none of them with "norm".
    expected = dict.fromkeys(ours, True) | published_decays(task, variant)
    assert expected.keys() == ours.keys()
    weight_decay = cfg.optim_wrapper.optimizer.weight_decay
    assert ours == {name: weight_decay * decayed for name, decayed in expected.items()}
    assert sum(decay == 0 for decay in ours.values()) == COUNTS[task][variant]
    assert {group['lr'] for group in optimizer.param_groups} == {cfg.optim_wrapper.optimizer.lr}
    assert len(optimizer.param_groups) == 2
