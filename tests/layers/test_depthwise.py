"""Which depthwise convolutions run our kernels, and that these train the network as torch does."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from overlock_mm.layers import basic, depthwise, reparam
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.layers.depthwise import DepthwiseConv2d, uses_kernels
from tests.models.helpers import randomize_parameters

BN = dict(type='BN')


class OnGpu:
    """What a layer asks of a map on a GPU."""

    is_cuda = True
    device = torch.device('cuda')

    def __init__(self, dtype=torch.float32, dim=4):
        self.dtype = dtype
        self.dim = lambda: dim


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setattr(depthwise, '_has_kernels', lambda device: True)


@pytest.fixture
def own_kernels(monkeypatch):
    """Our operator on the CPU, where the layers would leave it to torch."""
    for module in (depthwise, reparam, basic):
        monkeypatch.setattr(module, 'uses_kernels', lambda conv, x: True)


@pytest.mark.parametrize(
    ('sizes', 'x', 'expected'),
    [
        ((5, 1), OnGpu(), True),
        ((17, 1), OnGpu(), True),
        ((3, 2), OnGpu(), True),
        ((3, 1), OnGpu(), True),
        ((19, 1), OnGpu(), False),  # no kernel is so large
        ((7, 1), OnGpu(torch.float64), False),
        ((7, 1), OnGpu(torch.bfloat16), False),  # not the dtype of the weight: an error of torch
        ((7, 1), OnGpu(dim=3), False),
        ((7, 1), torch.rand(1, 4, 5, 5), False),
    ],
)
def test_where_the_kernels_are_used(sizes, x, expected, there):
    assert uses_kernels(DepthwiseConv2d(4, *sizes), x) == expected
    assert not uses_kernels(nn.Conv2d(4, 4, 7, padding=3, groups=4), x)


def test_a_device_without_kernels_leaves_them_to_torch(monkeypatch):
    monkeypatch.setattr(depthwise, '_has_kernels', lambda device: False)
    assert not uses_kernels(DepthwiseConv2d(4, 7), OnGpu())


def test_a_trace_holds_the_convolution_of_torch(there, monkeypatch):
    monkeypatch.setattr(torch.jit, 'is_tracing', lambda: True)
    assert not uses_kernels(DepthwiseConv2d(4, 7), OnGpu())


def step(block, x):
    x = x.clone().requires_grad_()
    block(x).square().sum().backward()
    return [x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_block_is_trained_as_by_torch(layout, own_kernels, monkeypatch):
    torch.manual_seed(0)
    block = randomize_parameters(BasicBlock(8, 9, 2, 0.0, True, BN)).double().train()
    twin = copy.deepcopy(block)
    x = torch.randn(2, 8, 12, 10, dtype=torch.float64).contiguous(memory_format=layout)
    got = step(block, x)
    monkeypatch.undo()
    for gradient, wanted in zip(got, step(twin, x), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


def test_autocast_leaves_the_precision_of_the_residual(own_kernels):
    layer, x = basic.ResidualDepthwiseConv(4), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(layer(x), x + torch.nn.Conv2d.forward(layer, x))
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x), rtol=0.02, atol=0.02)


def test_autocast_lowers_a_map_once_for_all_branches(own_kernels):
    layer = reparam.DilatedReparamConv(4, 9, BN).train()
    casts = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].shape == (2, 4, 9, 8):
                casts.append(kwargs)
            return func(*args, **(kwargs or {}))

    with torch.autocast('cpu', torch.bfloat16), Casts():
        layer(torch.randn(2, 4, 9, 8))
    assert len(casts) == 1


class OwnConvolutions(TorchDispatchMode):
    """Counts our convolutions by the size of their kernel."""

    def __init__(self):
        super().__init__()
        self.kernel_sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.overlock_mm.depthwise_conv2d.default:
            self.kernel_sizes.append(args[1].shape[-1])
        return func(*args, **(kwargs or {}))


def test_the_result_of_the_large_convolution_is_kept(own_kernels):
    block = BasicBlock(8, 13, 2, 0.0, True, BN).train()
    x = torch.randn(2, 8, 9, 10, requires_grad=True)
    with OwnConvolutions() as computed:
        out = block(x)
        assert computed.kernel_sizes.count(13) == 1
        computed.kernel_sizes.clear()
        out.sum().backward()
    # The gradient of its input is a convolution of the same size; the branches run again.
    assert computed.kernel_sizes.count(13) == 1
    assert computed.kernel_sizes.count(7) == 4


def test_the_choice_can_be_traced():
    """What a compiled graph asks where it is compiled, without a graph break."""

    def function(x):
        ours = depthwise._is_for_this_process(x.device)
        return x + 1 if ours and not depthwise.in_autocast('cpu') else x - 1

    compiled = torch.compile(function, fullgraph=True, backend='eager')
    old = not hasattr(torch.compiler, 'is_exporting')
    assert compiled(torch.zeros(1)) == (-1 if old else 1)


@pytest.mark.gpu
@pytest.mark.smoke
@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device.')
@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_block_on_a_gpu_is_trained_as_by_torch(layout, compiled):
    torch.manual_seed(0)
    block = randomize_parameters(BasicBlock(32, 13, 2, 0.0, True, BN)).train()
    exact = copy.deepcopy(block).double()
    x = torch.randn(2, 32, 14, 14)
    wanted = step(exact, x.double())
    block, x = block.cuda(), x.cuda().contiguous(memory_format=layout)
    assert uses_kernels(block.large_conv.conv, x)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        got = step(torch.compile(block) if compiled else block, x)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    for gradient, expected in zip(got, wanted, strict=True):
        assert (gradient.cpu().double() - expected).abs().max() <= 1e-3 * expected.abs().max()
