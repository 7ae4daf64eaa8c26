"""Computing cheap results again changes nothing but the memory."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.training_memory import plain_formulation
from overlock_mm import OverLoCK
from overlock_mm.models.blocks import BasicBlock
from overlock_mm.models.lean import lean
from overlock_mm.models.reparam import DilatedReparamConv
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
        (dict(norm_cfg=dict(type='BN', momentum=None), with_cp=True), None),
        (dict(norm_eval=True, frozen_stages=2), torch.float16),
    ],
    ids=['detection', 'bf16', 'SyncBN', 'with_cp', 'frozen'],
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_step_is_the_plain_one_to_the_last_bit(form, autocast, layout):
    torch.manual_seed(0)
    model = randomize_parameters(OverLoCK(TINY, **form)).to(memory_format=layout).train()
    image = torch.randn(2, 3, 64, 96).to(memory_format=layout)
    with plain_formulation():
        expected = step(copy.deepcopy(model), image, autocast)
    norms = {m: m.momentum for m in model.modules() if hasattr(m, 'momentum')}
    outputs, gradients, buffers = step(model, image, autocast)
    assert all(norm.momentum == momentum for norm, momentum in norms.items())
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected[0], strict=True))
    for name, gradient in gradients.items():
        reference = expected[1][name]
        assert (gradient is None) == (reference is None), name
        assert gradient is None or torch.equal(gradient, reference), name
    assert all(torch.equal(buffer, expected[2][name]) for name, buffer in buffers.items())


@pytest.mark.parametrize('kernel_size', [7, 17])
def test_dilated_branches_in_training(kernel_size):
    """Against the definition: a sum of batch norms of convolutions."""
    torch.manual_seed(0)
    layer = randomize_parameters(DilatedReparamConv(6, kernel_size, BN)).double()
    x = torch.randn(2, 6, 20, 23, dtype=torch.float64, requires_grad=True)
    reference = copy.deepcopy(layer)
    expected = reference.norm(reference.conv(x)) + sum(
        branch.norm(branch.conv(x)) for branch in reference.branches.values()
    )
    cotangent = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad(expected, x, cotangent, retain_graph=True)
    expected.backward(cotangent, inputs=list(reference.parameters()))

    out = layer(x)
    assert (out - expected).abs().max() < 1e-13 * expected.abs().max()
    with Convolutions() as computed:
        out.backward(cotangent)
    assert kernel_size not in computed.kernel_sizes
    assert len(computed.kernel_sizes) == len(layer.branches)
    assert (x.grad - expected_gradient).abs().max() < 1e-12 * expected_gradient.abs().max()
    for (name, p), q in zip(layer.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-12 * q.grad.abs().max(), name
    for (name, a), b in zip(layer.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return nn.BatchNorm2d(4), F.gelu, nn.Conv2d(4, 8, 3)


def test_the_convolution_is_not_computed_again(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    with Convolutions() as computed:
        out = lean(x, *chain)
        assert computed.kernel_sizes == [3]
        out.sum().backward()
    assert computed.kernel_sizes == [3]
    assert chain[0].num_batches_tracked == 1


def test_a_second_backward_pass_through_the_same_graph(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    loss = lean(x, *chain).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def test_a_second_derivative_is_refused(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    loss = lean(x, *chain).square().sum()
    with pytest.raises(RuntimeError, match='cannot be differentiated .* without create_graph=True'):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_chain_that_changed_in_between_is_refused(chain):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    loss = lean(x, *chain).square().sum()
    chain[0].weight = None
    with pytest.raises(RuntimeError, match='Remedy: change no module between the two'):
        loss.backward()


def test_in_evaluation_each_module_runs_once_and_twice_differentiable(chain):
    """So that tools which hook into modules, as those for activation maps do, see one call."""
    norm, *_, conv = chain
    calls = []
    norm.eval()
    conv.eval()
    norm.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(lean(x, *chain).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()
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
