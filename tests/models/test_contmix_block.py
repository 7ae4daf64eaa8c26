"""The authors' standalone block against their outputs, gradients and state dicts."""

import gzip
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from overlock_mm import ContMixBlock
from overlock_mm.layers.forms import FORMS
from overlock_mm.models.official_names import CONTMIX_BLOCK, rename_in_block
from tests.data import recipe
from tests.models.helpers import randomize_parameters
from tests.models.test_golden import assert_matches
from tests.official import DATA

with gzip.open(DATA / 'contmix_block.json.gz', 'rt') as file:
    CASES = json.load(file)
EVALUATION = [case for case in CASES if case['mode'] == 'eval']
TRAINING = [case for case in CASES if case['mode'] == 'train']


def case_id(case):
    return 'x'.join(str(n) for n in case['input']) + f'-k{case["kwargs"]["kernel_size"]}'


def official_state(shapes):
    return {
        name: torch.as_tensor(a, dtype=torch.int64 if name.endswith('tracked') else torch.float64)
        for name, a in recipe.state_dict(shapes).items()
    }


def input_of(case):
    shape = tuple(case['input'])
    return torch.as_tensor(recipe._normal('map-' + 'x'.join(str(n) for n in shape), shape))


def loaded(case, shapes='shapes', **kwargs):
    block = ContMixBlock(**case['kwargs'], **kwargs).double()
    block.load_state_dict(official_state(case[shapes]))
    return block.train(case['mode'] == 'train')


@pytest.mark.parametrize('case', EVALUATION, ids=case_id)
def test_outputs_in_every_form(case):
    block = loaded(case)
    x = input_of(case)
    with torch.no_grad():
        assert_matches(block(x), case['output'], 1e-9)
        block.reparm()
        assert_matches(block(x), case['output'], 1e-9)
        block.switch_to_deploy()
        assert_matches(block(x), case['output'], 1e-9)


@pytest.mark.parametrize('case', EVALUATION, ids=case_id)
def test_a_reparameterized_state_dict_has_the_published_names(case):
    block = loaded(case, 'reparameterized_shapes', deploy=True)
    expected = {
        rename_in_block(name, CONTMIX_BLOCK): list(shape)
        for name, shape in case['reparameterized_shapes'].items()
    }
    assert {name: list(x.shape) for name, x in block.state_dict().items()} == expected


@pytest.mark.parametrize('case', TRAINING, ids=case_id)
@pytest.mark.parametrize('use_checkpoint', [False, True])
def test_training_outputs_and_gradients(case, use_checkpoint):
    block = loaded(case, use_checkpoint=use_checkpoint)
    x = input_of(case).requires_grad_()
    out = block(x)
    assert_matches(out, case['output'], 1e-9)
    loss = (out * torch.as_tensor(recipe.cotangent(0, out.shape))).sum()
    assert abs(loss.item() - case['loss']) <= 1e-9 * max(1, abs(case['loss']))
    loss.backward()
    assert_matches(x.grad, case['input_grad'], 1e-7)
    floor = 1e-12 * max(case['grad_norm'].values())
    gradients = {name: p.grad for name, p in block.named_parameters()}
    for name, norm in case['grad_norm'].items():
        ours = gradients.pop(rename_in_block(name, CONTMIX_BLOCK))
        assert abs(ours.norm().item() - norm) <= 1e-7 * norm + floor, name
    assert gradients == {}


@pytest.mark.parametrize('res_scale', [False, True])
def test_folding_takes_trained_scales_and_statistics_along(res_scale):
    kwargs = dict(dim=32, num_heads=2, res_scale=res_scale, ls_init_value=0.1)
    block = randomize_parameters(ContMixBlock(**kwargs)).double().eval()
    x = torch.randn(2, 32, 9, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x)
        block.switch_to_deploy()
        torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    assert not any(p.requires_grad for p in block.parameters())
    assert not any(m.training for m in block.modules())


@pytest.mark.parametrize('size', [(1, 1), (3, 27), (40, 2), (7, 7)])
def test_any_map_size(size):
    block = ContMixBlock(dim=16, kernel_size=7, num_heads=1).eval()
    with torch.no_grad():
        assert block(torch.rand(1, 16, *size)).shape == (1, 16, *size)


def test_official_names_load_inside_another_network():
    case = EVALUATION[0]
    network = nn.ModuleDict({'neck': nn.Sequential(ContMixBlock(**case['kwargs']).double())})
    state = official_state(case['shapes'])
    network.load_state_dict({f'neck.0.{name}': x for name, x in state.items()})
    with torch.no_grad():
        out = network['neck'].eval()(input_of(case))
    assert_matches(out, case['output'], 1e-9)
    # And the names that it saves itself.
    network.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ('shapes', 'deploy', 'message'),
    [
        ('shapes', True, 'in training form. Remedy: build it with deploy=False'),
        ('reparameterized_shapes', False, 'in reparameterized form. Remedy: build it with deploy'),
    ],
)
def test_a_state_dict_of_another_form_is_explained(shapes, deploy, message):
    block = ContMixBlock(**EVALUATION[0]['kwargs'], deploy=deploy)
    with pytest.raises(RuntimeError, match=message):
        block.load_state_dict(official_state(EVALUATION[0][shapes]))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(dim=20, num_heads=2), 'Use a multiple of 8'),
        (dict(kernel_size=8), 'kernel_size must be one of 5, 7, .*19, got 8'),
        (dict(smk_size=9), 'at most kernel_size .7., got 9'),
    ],
)
def test_bad_numbers_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ContMixBlock(**kwargs)


def test_unknown_keywords_are_ignored_with_a_warning():
    with pytest.warns(UserWarning, match='ContMixBlock ignores kernel_szie'):
        ContMixBlock(dim=16, num_heads=1, kernel_szie=9)


class Derived(ContMixBlock):
    def forward(self, x):
        return super().forward(x) + 1


def with_replaced(part, replacement):
    block = ContMixBlock(dim=16, num_heads=1)
    block.set_submodule(part, replacement)
    return block


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Derived(16, num_heads=1), 'is a Derived, derived from ContMixBlock; only'),
        (lambda: ContMixBlock(16, num_heads=1, norm_layer=nn.BatchNorm2d), 'norm1 is a BatchNorm'),
        (lambda: with_replaced('layer_scale2', nn.Conv2d(16, 16, 1)), 'layer_scale2 is a Conv2d'),
        (lambda: with_replaced('mlp.grn', nn.Identity()), 'mlp.grn is a Identity; only GRN'),
        (
            lambda: with_replaced('value.norm', nn.Identity()),
            'value.norm is a Identity; only',
        ),
    ],
)
def test_what_cannot_be_folded_is_refused_and_left_as_it_was(make, message):
    block = make()
    before = list(block.state_dict())
    with pytest.raises(TypeError, match=message):
        block.switch_to_deploy()
    assert list(block.state_dict()) == before
    assert block.form == 'training'


def test_a_replaced_branch_is_not_folded_by_half():
    block = with_replaced('local_conv.branches.k5_d1.norm', nn.Identity())
    with pytest.raises(TypeError, match='branches.k5_d1.norm is a Identity; only BatchNorm2d or'):
        block.reparm()
    assert block.form == 'training'


def test_the_form_says_what_is_folded():
    block = ContMixBlock(dim=16, num_heads=1)
    forms = [block.form]
    block.reparm()
    forms.append(block.form)
    block.switch_to_deploy()
    assert (*forms, block.form) == FORMS
    block.reparm()  # nothing is left to fold


@pytest.mark.slow
def test_operators_and_block_need_only_torch():
    code = (
        'import sys\n'
        "blocked = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'einops')\n"
        'class Finder:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name.split('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        'import importlib.util as util\n'
        'found = util.find_spec\n'
        'util.find_spec = lambda name, *a: None if name in blocked else found(name, *a)\n'
        'sys.meta_path.insert(0, Finder())\n'
        'import torch, overlock_mm.ops\n'
        'from overlock_mm import ContMix, ContMixBlock\n'
        'print(ContMixBlock(16, num_heads=1).eval()(torch.rand(1, 16, 8, 8)).shape)\n'
        'try:\n'
        '    from overlock_mm import OverLoCK\n'
        'except ImportError as error:\n'
        '    print(error)\n'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == (
        'torch.Size([1, 16, 8, 8])\noverlock_mm.OverLoCK needs mmengine, which is not installed. '
        'Remedy: pip install onedl-mmengine.\n'
    )
