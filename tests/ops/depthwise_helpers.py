"""Calls of the depthwise operators, and what the definition makes of them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from overlock_mm import ops
from overlock_mm.ops.depthwise import reference
from overlock_mm.ops.precision import compute_dtype
from tests.tolerances import TOLERANCES, assert_close

LAYOUTS = ('channels_last', 'contiguous', 'strided')
EPS = 1e-6


class Shape(NamedTuple):
    """Sizes of a call."""

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int

    def __str__(self):
        return f'b{self.batch}c{self.channels}-{self.height}x{self.width}-k{self.kernel_size}'


#: All kernel sizes; channels that fill vectors and that do not, one and several panels; maps of
#: one pixel, row or column, smaller and larger than the kernel, and of several strips.
SHAPES = (
    Shape(1, 1, 1, 1, 3),
    Shape(2, 16, 7, 7, 3),
    Shape(1, 75, 9, 14, 3),
    Shape(1, 160, 5, 17, 3),
    Shape(3, 5, 1, 9, 5),
    Shape(2, 32, 12, 1, 5),
    Shape(2, 48, 7, 7, 7),
    Shape(1, 24, 4, 11, 9),
    Shape(1, 33, 15, 6, 11),
    Shape(2, 64, 14, 14, 13),
    Shape(1, 17, 8, 20, 15),
    Shape(1, 16, 20, 61, 17),
    Shape(1, 40, 3, 5, 17),
)
#: Operator and options: each option at least once.
OPTIONS = (
    ('depthwise_conv2d', {}),
    ('depthwise_conv2d', {'gelu_input': True}),
    ('depthwise_conv2d', {'gelu_output': True, 'addend': True}),
    ('depthwise_conv2d_norm', {}),
    ('depthwise_conv2d_norm', {'skip_weight': True, 'skip_bias': True}),
    ('depthwise_conv2d_stats', {'stat': 'mean', 'addend': True}),
    ('depthwise_conv2d_stats', {'stat': 'norm', 'gelu_input': True, 'input_bias': True}),
)


#: What a backend gets for options that are not requested.
DEFAULTS = {
    'depthwise_conv2d': dict(
        input_bias=None, addend=None, gelu_input=False, gelu_output=False, dilation=1
    ),
    'depthwise_conv2d_norm': dict(skip_weight=None, skip_bias=None),
    'depthwise_conv2d_stats': dict(input_bias=None, addend=None, gelu_input=False, stat='mean'),
}


def normal(*sizes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)


def as_layout(tensor, layout):
    """The same [B, C, H, W] values with other strides."""
    if layout == 'contiguous':
        return tensor
    if layout == 'channels_last':
        return tensor.contiguous(memory_format=torch.channels_last)
    view = tensor.new_zeros([2 * n for n in reversed(tensor.shape)])[(slice(1, None, 2),) * 4]
    return view.permute(3, 2, 1, 0).copy_(tensor)


def arguments(shape, op, options, dtype=torch.float32, layout='channels_last', bias=True):
    """Positional arguments and keyword arguments of a call."""
    b, c, h, w, k = shape
    x, addend = (as_layout(normal(b, c, h, w, seed=s, dtype=dtype), layout) for s in (0, 1))
    weight = normal(c, 1, k, k, seed=2, dtype=dtype) / k
    if layout == 'channels_last':
        weight = ops.channels_innermost(weight)
    positional = [x, weight, normal(c, seed=3, dtype=dtype) if bias else None]
    if op == 'depthwise_conv2d_norm':
        positional += [normal(c, seed=s, dtype=dtype) for s in (4, 5)] + [EPS]
    tensors = {'addend': addend}
    for seed, name in enumerate(('input_bias', 'skip_weight', 'skip_bias'), 6):
        tensors[name] = normal(c, seed=seed, dtype=dtype)
    return positional, {name: tensors.get(name, value) for name, value in options.items()}


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


def expected_of(op, positional, options):
    """The definition in float64."""

    def double(value):
        return value.double() if isinstance(value, torch.Tensor) else value

    everything = {**DEFAULTS[op], **options}
    return as_tuple(
        getattr(reference, op)(
            *map(double, positional), **{name: double(v) for name, v in everything.items()}
        )
    )


def assert_right(shape, op, options, backend, device='cpu', **how):
    """A backend's results: values, dtypes, layout; half precision with float32 statistics."""
    positional, options = arguments(shape, op, options, **how)
    x = positional[0]
    on_device = [to_device(value, device) for value in positional]
    keywords = {name: to_device(value, device) for name, value in options.items()}
    results = as_tuple(getattr(ops, op)(*on_device, **keywords, backend=backend))
    expected = expected_of(op, positional, options)
    for result, wanted in zip(results, expected, strict=True):
        if result.dim() == 4:
            like = torch.empty(x.shape, memory_format=torch.channels_last)
            assert result.stride() == like.stride()
            assert result.dtype == x.dtype
        else:
            assert result.dtype == compute_dtype(x.dtype)
        result = result.cpu()
        if x.dtype.itemsize == 2 and op == 'depthwise_conv2d_norm':
            # The norm is that of a map which has been rounded already.
            bound = 8 * TOLERANCES[x.dtype] * wanted.abs().max()
            assert (result.double() - wanted).abs().max() <= bound
        else:
            assert_close(result, wanted)


#: Dilated calls: kernels of the network's branches, on maps that have fewer rows than the tap
#: distance, and as many as several tiles.
DILATED = (
    (Shape(2, 33, 12, 9, 7), 1),
    (Shape(1, 64, 3, 20, 5), 1),
    (Shape(2, 16, 9, 14, 9), 2),
    (Shape(1, 40, 22, 10, 3), 7),
    (Shape(2, 32, 5, 6, 3), 6),
    (Shape(1, 16, 7, 8, 11), 1),
)


def assert_gradients(shape, dilation, backend, device='cpu', dtype=torch.float32, layout=None):
    """A backend's convolution and its gradients, of parameters in float32."""
    b, c, h, w, k = shape
    x = as_layout(normal(b, c, h, w, seed=0, dtype=dtype), layout or 'channels_last')
    weight, bias = normal(c, 1, k, k, seed=1, dtype=dtype) / k, normal(c, seed=2, dtype=dtype)
    cotangent = as_layout(normal(b, c, h, w, seed=3, dtype=dtype), layout or 'channels_last')

    leaves = [x.to(device), weight.float().to(device), bias.float().to(device)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = ops.depthwise_conv2d(*leaves, dilation=dilation, backend=backend)
    got = torch.autograd.grad(out, leaves, cotangent.to(device))
    assert [g.dtype for g in got] == [leaf.dtype for leaf in leaves]
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert got[1].is_contiguous()

    exact = [value.double().requires_grad_() for value in (x, weight, bias)]
    wanted = F.conv2d(*exact, padding=dilation * (k // 2), dilation=dilation, groups=c)
    expected = torch.autograd.grad(wanted, exact, cotangent.double())
    for result, value in zip((out, *got), (wanted, *expected), strict=True):
        bound = 2 * TOLERANCES[dtype] * value.abs().max()
        assert (result.detach().cpu().double() - value).abs().max() <= bound


def to_device(value, device):
    """A tensor on a device, with its layout; anything else as it is."""
    return value.to(device) if isinstance(value, torch.Tensor) else value
