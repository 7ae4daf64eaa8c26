"""The fused form: the same network, with all folded that is constant in evaluation."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.deploy import folding
from overlock_mm.deploy.layers import Pointwise, PointwiseSum, fuse_bn_pointwise
from overlock_mm.layers.basic import LayerScale
from overlock_mm.layers.dynamic_block import DynamicBlock
from tests import official
from tests.data import recipe
from tests.models.helpers import TINY, randomize_norms, randomize_parameters
from tests.models.test_golden import assert_outputs

#: The variants' kernel sizes, ratios and groups, with few blocks and channels.
SMALL = {
    'tiny': TINY,
    'xt': dict(channels=(14, 28, 64, 96), depths=(1, 1, 1, 1, 2, 1), groups=(4, 6)),
    't': dict(channels=(16, 32, 64, 128), depths=(1, 1, 1, 1, 2, 1), groups=(4, 8)),
    's': dict(channels=(16, 32, 96, 128), depths=(1, 1, 1, 1, 2, 1), groups=(8, 16)),
    'b': dict(channels=(20, 40, 96, 144), depths=(1, 1, 1, 1, 2, 1), groups=(6, 9)),
    'small kernels': dict(
        TINY, kernel_sizes=(5, 9, 11, 7), mlp_ratios=(2, 4), contmix_small_kernel=3
    ),
}
TASKS = {
    'detection': dict(context_residual=True, out_indices=(0, 1, 2, 3, 4)),
    'segmentation': {},
    'classification': dict(output_norm=False, out_indices=(3, 4)),
}
SIZES = {
    'odd': (2, 3, 97, 65),
    'smallest': (1, 3, 32, 32),
    # Maps of more pixels than twice their channels: factors go into the matrices.
    'large': (2, 3, 160, 224),
}


def relative_error(out, reference):
    return ((out - reference).abs().max() / reference.abs().max()).item()


def both_forms(arch, **task):
    network = randomize_parameters(OverLoCK(arch, **task)).double().eval()
    folded = deepcopy(network)
    folded.switch_to_deploy()
    return network, folded


@pytest.mark.parametrize('arch', SMALL)
@pytest.mark.parametrize('task', TASKS)
def test_outputs_in_evaluation_stay_the_same(arch, task):
    network, folded = both_forms(SMALL[arch], **TASKS[task])
    assert (network.form, folded.form) == ('training', 'fused')
    assert folded.deploy and not network.deploy  # mmpretrain's attribute
    image = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        for out, reference in zip(folded(image), network(image), strict=True):
            assert out.shape == reference.shape
            assert relative_error(out, reference) < 1e-12


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_any_size_and_layout(size, layout):
    network, folded = both_forms(TINY, **TASKS['detection'])
    image = torch.randn(SIZES[size], dtype=torch.float64)
    with torch.no_grad():
        reference = network(image)
        outputs = folded(image.contiguous(memory_format=layout))
    for out, expected in zip(outputs, reference, strict=True):
        assert relative_error(out, expected) < 1e-12
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_input_is_left_as_it_was():
    _, folded = both_forms(TINY)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    image = image.contiguous(memory_format=torch.channels_last)
    before = image.clone()
    with torch.no_grad():
        first, second = folded(image), folded(image)
    assert torch.equal(image, before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_is_left_to_fold():
    _, folded = both_forms(TINY, **TASKS['detection'])
    unfolded = (nn.modules.batchnorm._BatchNorm, LayerScale)
    assert not [name for name, m in folded.named_modules() if isinstance(m, unfolded)]
    assert not [name for name, m in folded.named_modules() if m.training]  # as before


def test_twice_is_the_same_as_once_and_loads_into_a_built_deploy_form():
    _, folded = both_forms(TINY, **TASKS['detection'])
    weights = {name: value.clone() for name, value in folded.state_dict().items()}
    folded.switch_to_deploy()
    assert list(folded.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[n]) for n, value in folded.state_dict().items())

    built = OverLoCK(TINY, deploy=True, **TASKS['detection']).double().eval()
    built.load_state_dict(weights, strict=True)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(built(image), folded(image), strict=True))


def test_the_reparameterized_form_is_fused_to_the_same_network():
    network, folded = both_forms(TINY)
    network.reparameterize()
    assert network.form == 'reparameterized'
    network.switch_to_deploy()
    for name, value in folded.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, rtol=0, atol=1e-13), name


def test_training_mode_changes_nothing_and_trains_nothing():
    _, folded = both_forms(TINY, drop_path_rate=0.5)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = folded(image)
    outputs = folded.train()(image)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(out.requires_grad for out in outputs)


def test_gradients_flow_to_the_image():
    network, folded = both_forms(TINY, **TASKS['detection'])
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    gradients = []
    for model in (network, folded):
        leaf = image.clone().requires_grad_()
        sum(out.square().sum() for out in model(leaf)).backward()
        gradients.append(leaf.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-10


# The library's float16 convolutions take seconds on a CPU.
@pytest.mark.parametrize(('dtype', 'size'), [(torch.bfloat16, 64), (torch.float16, 32)])
@pytest.mark.parametrize('how', ['autocast', 'cast'])
def test_half_precision_is_within_its_rounding(how, dtype, size):
    network, folded = (model.float() for model in both_forms(TINY, **TASKS['detection']))
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = network(image)
        if how == 'autocast':
            with torch.autocast('cpu', dtype):
                outputs = folded(image)
        else:
            outputs = folded.to(dtype)(image.to(dtype))
            assert all(out.dtype == dtype for out in outputs)
    for out, reference in zip(outputs, expected, strict=True):
        # Rounding of some forty layers, each of half an eps.
        assert relative_error(out.float(), reference) < 20 * torch.finfo(dtype).eps


def test_matrices_lie_in_memory_as_products_want_them():
    values = torch.randn(6, 4).bfloat16().float()
    matrix = Pointwise(values[..., None, None], None)
    assert matrix.weight.stride() == (1, 6)
    for dtype, stride in ((torch.bfloat16, (4, 1)), (torch.float32, (1, 6))):
        weight = matrix.to(dtype).weight
        assert weight.stride() == stride
        assert weight.float().equal(values)


def test_the_check_passes_and_changes_nothing_before_it():
    network = randomize_parameters(OverLoCK(TINY, **TASKS['detection'])).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.device('meta'):  # another default device
        folding.check_fusing(network, 3)
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())
    network.switch_to_deploy(check=True)
    assert network.form == 'fused'


@pytest.mark.parametrize('statistics', ['own', 'random'])
def test_the_check_finds_a_wrong_fold(statistics, monkeypatch):
    network = OverLoCK(TINY).eval()
    if statistics == 'own':
        randomize_norms(network)

    def forgetful(norm, weight, bias):
        # The mistake that untouched statistics hide: a mean that is not subtracted.
        norm.running_mean.zero_()
        return fuse_bn_pointwise(norm, weight, bias)

    monkeypatch.setattr(folding, 'fuse_bn_pointwise', forgetful)
    with pytest.raises(RuntimeError, match=f'differs: output 2 .* {statistics} batch-norm'):
        network.switch_to_deploy(check=True)
    assert network.form == 'training'
    assert any(isinstance(m, DynamicBlock) for m in network.modules())


FOLD_NAMES = ['reparameterize', 'switch_to_deploy']


@pytest.mark.parametrize('fold', FOLD_NAMES)
@pytest.mark.parametrize(
    'part', ['base_net.downsamples.0', 'base_net.stages.0.0', 'focus_net.stages.1.0.mlp.grn']
)
def test_a_derived_type_is_refused(part, fold):
    network = OverLoCK(TINY)
    module = network.get_submodule(part)
    base = type(module).__name__
    module.__class__ = type('Mine', (type(module),), {})
    before = list(network.state_dict())
    message = f'{part} is a Mine.*only {base} itself can be folded. Remedy'
    with pytest.raises(TypeError, match=message):
        getattr(network, fold)()
    assert list(network.state_dict()) == before
    assert network.form == 'training'


@pytest.mark.parametrize('fold', FOLD_NAMES)
@pytest.mark.parametrize(
    ('part', 'replacement'),
    [
        # Each has the weights that folding reads, and computes something else.
        ('base_net.stages.0.0.norm', nn.GroupNorm(1, 16)),
        ('base_net.stages.0.0.layer_scale', nn.Conv2d(16, 16, 1)),
        ('overview_net.blocks.0.mlp.reduce', nn.Conv2d(256, 64, 1, padding_mode='reflect')),
        ('focus_net.stages.0.0.local_conv.norm', nn.InstanceNorm2d(64, affine=True)),
        ('focus_net.stages.1.1.out_norm', nn.Identity()),
    ],
)
def test_a_replaced_part_is_refused(part, replacement, fold):
    network = OverLoCK(TINY)
    network.set_submodule(part, replacement)
    before = list(network.state_dict())
    with pytest.raises(
        TypeError, match=f'{part} is a {type(replacement).__name__}; only .* Remedy'
    ):
        getattr(network, fold)()
    assert list(network.state_dict()) == before


def test_what_folding_leaves_as_it_is_may_be_replaced():
    network = randomize_parameters(OverLoCK(TINY)).eval()
    network.base_net.downsamples[0][1] = nn.SiLU()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(image)
        network.switch_to_deploy()
        for out, reference in zip(network(image), expected, strict=True):
            assert relative_error(out, reference) < 1e-4


def test_a_norm_without_statistics_cannot_be_folded():
    network = OverLoCK(TINY, norm_cfg=dict(type='BN', track_running_stats=False))
    with pytest.raises(ValueError, match='without running statistics'):
        network.switch_to_deploy()


@pytest.mark.parametrize('pixels', [3, 12])
def test_pointwise_with_a_factor(pixels):
    """Below and above the size from which the factor goes into the matrix."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, pixels, 1, dtype=torch.float64)
    factor, skip = torch.rand(2, 3, dtype=torch.float64), torch.randn(2, 4, pixels, 1).double()
    conv = nn.Conv2d(3, 4, 1).double()
    expected = conv(x * factor[..., None, None])
    layer = Pointwise(conv.weight, conv.bias)
    assert torch.allclose(layer(x, factor), expected)
    assert torch.allclose(layer(x), conv(x))
    without_bias = Pointwise(conv.weight, None)(x, factor)
    assert torch.allclose(without_bias + conv.bias[:, None, None], expected)
    conv.bias.data.zero_()
    total = PointwiseSum(conv.weight)(skip.clone(), x, factor)
    assert torch.allclose(total, skip + conv(x * factor[..., None, None]))


CASES = [case for case in official.golden_cases() if case['mode'] == 'eval']


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', CASES, ids=official.case_id)
def test_golden_outputs(case, dtype):
    """Outputs of the published network, from outside this project."""
    model = official.load_official(case['task'], case['variant']).eval()
    model.backbone.switch_to_deploy()
    model.to(dtype)
    batch, _, height, width = case['input']
    image = torch.as_tensor(recipe.image(batch, height, width)).to(dtype)
    with torch.no_grad():
        outputs = official.outputs_of(model, case['task'], image)
    assert_outputs(outputs, case, 1e-9 if dtype == torch.float64 else 1e-4)
