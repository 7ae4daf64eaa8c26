"""Computing cheap results again changes nothing but the memory."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from overlock_mm import OverLoCK
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.layers.recompute import RECOMPUTE, KeptConv2d, recompute_in_backward
from overlock_mm.layers.stem import Stem
from tests.models.helpers import TINY, randomize_parameters

BN = dict(type='BN')


class Convolutions(TorchDispatchMode):
    """Records the kernel size of every convolution that is computed forwards."""

    def __init__(self):
        super().__init__()
        self.kernel_sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.kernel_sizes.append(args[1].shape[-1])
        return func(*args, **(kwargs or {}))


def recompute_nothing(model):
    for module in model.modules():
        if hasattr(module, 'recompute'):
            module.recompute = 'none'
    return model


def step(model, image, autocast=None):
    """Outputs, gradients and buffers after one step."""
    torch.manual_seed(5)
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        outputs = model(image)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return outputs, gradients, dict(model.named_buffers())


@pytest.mark.parametrize(
    ('form', 'autocast'),
    [
        (dict(context_residual=True, drop_path_rate=0.5), None),
        (dict(output_norm=False, out_indices=(3, 4)), torch.bfloat16),
        (dict(norm_cfg=dict(type='SyncBN')), None),
        (dict(norm_cfg=dict(type='BN', momentum=None), recompute='blocks'), None),
        (dict(norm_eval=True, frozen_stages=2), torch.float16),
    ],
    ids=['detection', 'bf16', 'SyncBN', 'blocks', 'frozen'],
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_step_is_the_plain_one_to_the_last_bit(form, autocast, layout):
    torch.manual_seed(0)
    model = randomize_parameters(OverLoCK(TINY, **form)).to(memory_format=layout).train()
    image = torch.randn(2, 3, 64, 96).to(memory_format=layout)
    expected = step(recompute_nothing(copy.deepcopy(model)), image, autocast)
    norms = {m: m.momentum for m in model.modules() if hasattr(m, 'momentum')}
    outputs, gradients, buffers = step(model, image, autocast)
    assert all(norm.momentum == momentum for norm, momentum in norms.items())
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected[0], strict=True))
    for name, gradient in gradients.items():
        reference = expected[1][name]
        assert (gradient is None) == (reference is None), name
        assert gradient is None or torch.equal(gradient, reference), name
    assert all(torch.equal(buffer, expected[2][name]) for name, buffer in buffers.items())


def test_dropout_of_the_user_is_the_same_in_both_runs():
    def gradients(recompute):
        torch.manual_seed(0)
        model = randomize_parameters(OverLoCK(TINY, recompute=recompute)).train()
        for module in model.modules():
            if isinstance(module, BasicBlock):
                module.se = nn.Sequential(module.se, nn.Dropout(0.5))
        torch.manual_seed(1)
        outputs = model(torch.rand(2, 3, 64, 64))
        torch.rand(7)  # as a head between forward and backward pass does
        sum(out.sum() for out in outputs).backward()
        return [p.grad for p in model.parameters()], torch.rand(3)

    expected, following = gradients('none')
    for recompute in ('cheap', 'blocks'):
        actual, random_numbers = gradients(recompute)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert torch.equal(random_numbers, following)


def test_costly_results_are_not_computed_again():
    torch.manual_seed(0)
    block = randomize_parameters(BasicBlock(8, 7, 2, 0.5, True, BN)).train()
    x = torch.randn(2, 8, 9, 10, requires_grad=True)
    with Convolutions() as computed:
        out = block(x)
        first = list(computed.kernel_sizes)
        computed.kernel_sizes.clear()
        out.sum().backward()
    assert 7 in first
    # The two 3 x 3 beside the identity, the dilated branches and squeeze-excite; but neither the
    # large convolution nor the 1 x 1 of the MLP, and the layer scale is the end of the block.
    small = [branch.conv.kernel_size[0] for branch in block.large_conv.branches.values()]
    assert sorted(computed.kernel_sizes) == sorted([3, 3, *small, 1, 1])


def leaves(model):
    """Modules without children, apart from one whose weights are arguments of an operator."""
    return {
        name: module
        for name, module in model.named_modules()
        if not list(module.children()) and not name.endswith('kernel_proj')
    }


@pytest.mark.parametrize('recompute', RECOMPUTE)
@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
def test_hooks_fire_on_every_leaf_module(recompute, training):
    model = OverLoCK(TINY, context_residual=True, recompute=recompute).train(training)
    called = set()
    for name, module in leaves(model).items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(torch.rand(2, 3, 64, 64))
    assert called == set(leaves(model))


class Replacement(nn.Module):
    """What a user puts in place of a module: here the module, and something that learns."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.amount = nn.Parameter(torch.zeros(()))

    def forward(self, *args):
        out = self.module(*args)
        return out + self.amount * out.sin()


@pytest.mark.parametrize('recompute', RECOMPUTE)
def test_every_leaf_module_can_be_replaced(recompute):
    model = randomize_parameters(OverLoCK(TINY, context_residual=True, recompute=recompute))
    for name, module in leaves(model).items():
        model.set_submodule(name, Replacement(module))
    model.train()(torch.rand(2, 3, 64, 64))
    outputs, gradients, _ = step(model, torch.rand(2, 3, 64, 64))
    assert outputs
    amounts = {name: g for name, g in gradients.items() if name.endswith('amount')}
    assert len(amounts) == sum(isinstance(m, Replacement) for m in model.modules())
    assert [name for name, g in amounts.items() if g is None or g == 0] == []


class Doubled(nn.Module):
    """A norm, and a convolution whose result is kept."""

    recompute = 'cheap'

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = KeptConv2d(4, 8, 3)

    @recompute_in_backward
    def forward(self, x):
        return self.conv(F.gelu(self.norm(x)))


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Doubled()


def test_a_second_backward_pass_through_the_same_graph(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    loss = chain(x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    assert chain.norm.num_batches_tracked == 1


def test_under_another_checkpoint(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(chain(x).square().sum(), x)
    out = checkpoint(chain, x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize('recompute', RECOMPUTE)
@pytest.mark.parametrize(
    ('block', 'shape'),
    [
        (lambda: BasicBlock(4, 5, 2, 0.0, True, BN), (2, 4, 3, 4)),
        (lambda: Stem(2, 4, BN), (2, 2, 8, 8)),
    ],
    ids=['BasicBlock', 'Stem'],
)
def test_second_derivatives(block, shape, recompute):
    torch.manual_seed(0)
    block = randomize_parameters(block()).double().train()
    block.recompute = recompute
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = next(p for name, p in block.named_parameters() if name.endswith('conv.weight'))
    assert torch.autograd.gradgradcheck(lambda x, _: block(x), (x, weight), fast_mode=True)


def test_a_module_that_changed_in_between_is_refused(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    loss = chain(x).square().sum()
    chain.norm.weight = None
    with pytest.raises(RuntimeError, match='Remedy: change no module between the two'):
        loss.backward()


def test_in_evaluation_each_module_runs_once(chain):
    """So that tools which hook into modules, as those for activation maps do, see one call."""
    calls = []
    chain.eval().norm.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    chain(x).square().sum().backward()
    assert calls == [1]


def test_a_block_compiles_without_graph_breaks():
    torch.manual_seed(0)
    block = randomize_parameters(BasicBlock(8, 7, 2, 0.0, True, BN)).train()
    compiled = torch.compile(copy.deepcopy(block), backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 8, 9, 10)
    expected, out = block(x), compiled(x)
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn_like(out)
    expected.backward(cotangent)
    out.backward(cotangent)
    for (name, p), q in zip(block.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(q.grad, p.grad, rtol=1e-3, atol=1e-4 * p.grad.abs().max()), name


def test_a_step_leaves_nothing_behind():
    """Operations that keep their own result, such as the norm of GRN, are easily left alive."""
    model = OverLoCK(TINY).train()
    alive = []
    for _ in range(3):
        sum(out.sum() for out in model(torch.randn(2, 3, 64, 64))).backward()
        gc.collect()
        alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert alive[2] == alive[1]
