import subprocess
import sys

import mmdet.registry
import mmpretrain.registry
import mmseg.registry
import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.layers.basic import DropPath
from overlock_mm.models.overlock import _drop_path_rates
from tests import official
from tests.models.helpers import TINY, randomize_parameters

# The published exact parameter counts.
PARAMETERS = {
    ('xt', True): 16_453_712,
    ('t', True): 33_467_040,
    ('s', True): 56_156_452,
    ('b', True): 94_942_528,
    ('xt', False): 17_307_272,
    ('t', False): 34_990_472,
    ('s', False): 58_309_772,
    ('b', False): 98_012_968,
}


def tiny(**kwargs):
    torch.manual_seed(0)
    return randomize_parameters(OverLoCK(TINY, **kwargs))


def train_step(model, image):
    """Outputs and gradients of one step in training mode."""
    model.train().zero_grad()
    torch.manual_seed(5)
    outputs = model(image)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(('variant', 'deploy'), PARAMETERS)
def test_parameter_counts(variant, deploy):
    model = official.build_model('cls', variant, 'reparameterized' if deploy else 'training')
    names = [n for n, _ in model.named_parameters() if not (deploy and n.startswith('head.aux'))]
    assert sum(model.get_parameter(n).numel() for n in names) == PARAMETERS[variant, deploy]


@pytest.mark.parametrize('registry', [mmdet.registry, mmseg.registry, mmpretrain.registry])
def test_every_library_builds_it_by_its_bare_name(registry):
    assert isinstance(registry.MODELS.build(dict(type='OverLoCK', arch=TINY)), OverLoCK)


@pytest.mark.parametrize(
    'size', [(32, 32), (33, 47), (224, 224), (191, 65), (32, 640), (480, 40), (97, 256)]
)
def test_any_image_from_32_pixels_on(size):
    model = tiny(context_residual=True).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, *size))
    for out, channels, stride in zip(outputs, model.out_channels, (4, 8, 16, 32), strict=True):
        # Each halving rounds up.
        assert out.shape == (1, channels, *(-(-side // stride) for side in size))
        assert out.isfinite().all()


def test_small_and_malformed_images_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match='at least 32 pixels, got 31 x 64'):
        model(torch.rand(1, 3, 31, 64))
    with pytest.raises(ValueError, match=r'must be \[B, C, H, W\], got \[3, 64, 64\]'):
        model(torch.rand(3, 64, 64))


@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 1), (2,), (3,), (4,), (1, 3), (3, 4)])
@pytest.mark.parametrize('output_norm', [True, False])
def test_out_indices_select_from_the_same_outputs(out_indices, output_norm):
    full = tiny(out_indices=(0, 1, 2, 3, 4), output_norm=output_norm).eval()
    part = OverLoCK(TINY, out_indices=out_indices, output_norm=output_norm).eval()
    own = part.state_dict()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in own})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs, selected = full(image), part(image)
    assert part.out_channels == tuple(out.shape[1] for out in selected)
    for index, out in zip(out_indices, selected, strict=True):
        assert torch.equal(out, outputs[index])


@pytest.mark.parametrize(
    'form',
    [
        dict(context_residual=True),
        {},
        dict(output_norm=False, out_indices=(3, 4)),
    ],
    ids=['detection', 'segmentation', 'classification'],
)
def test_every_parameter_gets_a_gradient(form):
    _, gradients = train_step(tiny(drop_path_rate=0.1, **form), torch.randn(2, 3, 64, 96))
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name


@pytest.mark.parametrize(
    'options',
    [
        dict(with_cp=True),
        dict(with_cp=(False, True, False, True, False, True)),
        dict(recompute=('none', 'cheap', 'blocks', 'none', 'cheap', 'blocks')),
    ],
    ids=['with_cp', 'with_cp of some', 'recompute'],
)
def test_recomputing_changes_nothing(options):
    image = torch.randn(2, 3, 64, 96)
    plain = tiny(drop_path_rate=0.5, recompute='none')
    recomputed = tiny(drop_path_rate=0.5, **options)
    outputs, gradients = train_step(plain, image)
    again, regradients = train_step(recomputed, image)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
    for name, gradient in gradients.items():
        assert torch.equal(gradient, regradients[name]), name
    # The second forward pass must not count for the statistics of batch norms.
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, recomputed.get_buffer(name)), name


def test_with_cp_is_another_name_for_blocks():
    assert tiny(with_cp=True).recompute == ('blocks',) * 6
    flags = (True, False, False, False, False, True)
    choices = ('blocks', 'none', 'none', 'none', 'none', 'blocks')
    assert tiny(recompute='none', with_cp=flags).recompute == choices


def test_recomputing_keeps_less_for_the_backward_pass():
    def kept_bytes(with_cp):
        model, seen = tiny(with_cp=with_cp).train(), {}
        parameters = {p.data_ptr() for p in model.parameters()}

        def pack(tensor):
            if tensor.data_ptr() not in parameters:
                seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(torch.randn(2, 3, 64, 64))
        assert outputs
        return sum(seen.values())

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


STAGE_PREFIXES = (
    ('base_net.downsamples.0',),
    ('base_net.stages.0',),
    ('base_net.downsamples.1', 'base_net.stages.1', 'norm1'),
    ('base_net.downsamples.2', 'base_net.stages.2'),
    ('overview_net',),
    ('focus_net.prior_proj', 'focus_net.stages.0'),
    ('focus_net.downsample', 'focus_net.stages.1'),
)


@pytest.mark.parametrize('frozen_stages', range(-1, 7))
def test_frozen_stages(frozen_stages):
    model = tiny(frozen_stages=frozen_stages).train()
    prefixes = tuple(p for stage in STAGE_PREFIXES[: frozen_stages + 1] for p in stage)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(prefixes), name
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training != name.startswith(prefixes), name


def test_norm_eval_keeps_batch_norms_in_evaluation_mode():
    model = tiny(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert model.training and model.base_net.training


def test_norm_cfg_reaches_every_batch_norm():
    model = OverLoCK(TINY, norm_cfg=dict(type='SyncBN', momentum=0.01, requires_grad=False))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(m) for m in norms} == {nn.SyncBatchNorm}
    assert {m.momentum for m in norms} == {0.01}
    assert not any(m.weight.requires_grad for m in norms)


def test_drop_path_rises_linearly_over_all_blocks():
    rates = _drop_path_rates(0.8, (2, 1, 1, 1, 3, 1))
    flat = [rate for stage in rates for rate in stage]
    assert [len(stage) for stage in rates] == [2, 1, 1, 1, 3, 1]
    assert flat == pytest.approx([0.1 * i for i in range(9)])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 1, 1))
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert out.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(out_indices=(0, 5)), r'integers from 0 to 4 .* got \(0, 5\)'),
        (dict(out_indices=(-1,)), r'got \(-1,\)'),
        (dict(out_indices=()), r'non-empty'),
        (dict(frozen_stages=7), r'from -1 \(none\) to 6 .* got 7'),
        (dict(with_cp=(True, False)), 'one bool for each of base1'),
        (dict(recompute='all'), "one of none, cheap, blocks, or .* got 'all'"),
        (dict(recompute=('none', 'cheap')), 'one for each of base1'),
        (dict(drop_path_rate=1.0), r'in \[0, 1\), got 1.0'),
        (dict(context_residual=True, output_norm=False), 'needs output_norm=True'),
        (dict(context_residual=True, out_indices=(0, 1)), 'output 3, to which it adds'),
        (dict(norm_cfg=dict(type='GN', num_groups=8)), "one of BN, SyncBN.* got 'GN'"),
        (dict(contmix_backend='gpu'), "got 'gpu'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OverLoCK(TINY, **kwargs)


@pytest.mark.slow
def test_it_needs_mmengine_alone():
    """Without mmcv, mmdet, mmseg and mmpretrain: import, build, forward and backward."""
    script = f"""
import sys
for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision'):
    sys.modules[name] = None  # an import of it now fails
import torch
from overlock_mm import OverLoCK
outputs = OverLoCK({TINY!r})(torch.rand(2, 3, 64, 64))
sum(out.sum() for out in outputs).backward()
"""
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == '' and result.stderr == ''
