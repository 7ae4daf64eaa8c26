"""The reference operators against their definition, written out token by token."""

import pytest
import torch

from overlock_mm.ops import contmix, neighborhood_aggregate


def window(i, size, kernel_size):
    """Rows (or columns) of the window of token i: the border rule in plain integers."""
    start = i - kernel_size // 2
    if start < 0:
        start = 0
    if start > size - kernel_size:
        start = size - kernel_size
    return range(start, start + kernel_size)


def aggregate_by_tokens(weight, value, kernel_size):
    batch, groups, height, width, channels = value.shape
    out = torch.zeros_like(value)
    for i in range(height):
        for j in range(width):
            taps = [
                (row, column)
                for row in window(i, height, kernel_size)
                for column in window(j, width, kernel_size)
            ]
            for t, (row, column) in enumerate(taps):
                out[:, :, i, j] += weight[:, :, i, j, t, None] * value[:, :, row, column]
    return out


def contmix_by_tokens(query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale):
    batch, groups, _, height, width = query.shape
    out = torch.zeros_like(value)
    for b in range(batch):
        for g in range(groups):
            for i in range(height):
                for j in range(width):
                    affinity = scale * query[b, g, :, i, j] @ key[b, g]
                    logits = proj_weight @ affinity + proj_bias
                    taps = [
                        (row, column)
                        for row in window(i, height, kernel_size)
                        for column in window(j, width, kernel_size)
                    ]
                    bias = [
                        rpb[g, row - i + kernel_size - 1, column - j + kernel_size - 1]
                        for row, column in taps
                    ]
                    weight = (logits + torch.stack(bias)).softmax(0)
                    for w, (row, column) in zip(weight, taps, strict=True):
                        out[b, g, :, i, j] += w * value[b, g, :, row, column]
    return out


def contmix_arguments(batch, groups, cq, c, height, width, regions, kernel_size, **kwargs):
    torch.manual_seed(0)
    taps, side = kernel_size**2, 2 * kernel_size - 1
    shapes = [
        (batch, groups, cq, height, width),
        (batch, groups, cq, regions),
        (batch, groups, c, height, width),
        (taps, regions),
        (taps,),
        (groups, side, side),
    ]
    return [torch.randn(shape, dtype=torch.float64, **kwargs) for shape in shapes]


@pytest.mark.parametrize(
    ('height', 'width', 'kernel_size'), [(3, 3, 3), (5, 7, 5), (9, 6, 5), (4, 11, 3), (8, 7, 7)]
)
def test_aggregation_is_the_sum_over_each_window(height, width, kernel_size):
    torch.manual_seed(0)
    weight = torch.randn(2, 3, height, width, kernel_size**2, dtype=torch.float64)
    value = torch.randn(2, 3, height, width, 4, dtype=torch.float64)
    out = neighborhood_aggregate(weight, value, kernel_size, backend='reference')
    expected = aggregate_by_tokens(weight, value, kernel_size)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(('height', 'width', 'kernel_size'), [(3, 5, 3), (6, 5, 5), (8, 7, 7)])
def test_contmix_is_its_definition(height, width, kernel_size):
    arguments = contmix_arguments(2, 2, 3, 4, height, width, 6, kernel_size)
    out = contmix(*arguments, kernel_size, scale=0.7, backend='reference')
    expected = contmix_by_tokens(*arguments, kernel_size, 0.7)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)


def test_gradients():
    arguments = contmix_arguments(1, 2, 2, 2, 4, 5, 3, 3, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: contmix(*a, 3, scale=0.5, backend='reference'), arguments
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_accumulates_in_float32(dtype):
    arguments = [a.to(dtype) for a in contmix_arguments(1, 2, 8, 8, 14, 14, 49, 13)]
    out = contmix(*arguments, 13, backend='reference')
    exact = contmix(*(a.double() for a in arguments), 13, backend='reference')
    assert out.dtype == dtype
    # One rounding of the result, not one of every step.
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_empty_batch():
    arguments = contmix_arguments(0, 2, 3, 4, 5, 5, 6, 5)
    assert contmix(*arguments, 5).shape == (0, 2, 4, 5, 5)


def changed(**changes):
    names = ('query', 'key', 'value', 'proj_weight', 'proj_bias', 'rpb')
    arguments = dict(zip(names, contmix_arguments(1, 2, 3, 4, 6, 7, 9, 5), strict=True))
    return {**arguments, 'kernel_size': 5, **changes}


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(kernel_size=4), ValueError, 'odd and between 3 and 17, got 4'),
        (dict(kernel_size=19), ValueError, 'odd and between 3 and 17, got 19'),
        (dict(kernel_size=5.0), TypeError, 'must be an int, got 5.0'),
        (
            dict(kernel_size=7),
            ValueError,
            'got 6 x 7 for kernel_size 7 and dilation 1. Resize the map first',
        ),
        (dict(backend='gpu'), ValueError, "one of: .*reference; got 'gpu'"),
        (dict(query=torch.zeros(1, 2, 3, 6).double()), ValueError, r'\[B, G, Cq, H, W\], got'),
        (dict(value=torch.zeros(1, 2, 4, 7, 7).double()), ValueError, r'value must be .* \[1, 2,'),
        (dict(key=torch.zeros(1, 2, 4, 9).double()), ValueError, r'key must be .* \[1, 2, 3, 9\]'),
        (dict(proj_weight=torch.zeros(9, 9).double()), ValueError, r'proj_weight must be .*25, 9'),
        (dict(proj_bias=torch.zeros(9).double()), ValueError, r'proj_bias must be .*\[25\]'),
        (dict(rpb=torch.zeros(2, 5, 5).double()), ValueError, r'rpb must be .*\[2, 9, 9\]'),
        (dict(key=torch.zeros(1, 2, 3, 9)), TypeError, 'one dtype, got query torch.float64, key'),
        (dict(key=torch.zeros(1, 2, 3, 9).long()), TypeError, 'floating point'),
        (dict(rpb=torch.zeros(2, 9, 9).long().tolist()), TypeError, 'rpb must be a torch.Tensor'),
        (dict(rpb=torch.zeros(2, 9, 9)), TypeError, 'one dtype, got proj_weight torch.float64,'),
        (
            dict(query=torch.zeros(1, 2, 0, 6, 7).double(), key=torch.zeros(1, 2, 0, 9).double()),
            ValueError,
            'Cq must be at least 1, got 0',
        ),
        (dict(value=torch.zeros(1, 2, 0, 6, 7).double()), ValueError, 'C must be at least 1'),
        (dict(value=torch.zeros(2, 4, 6, 7).double()), ValueError, r'\[B, G, C, H, W\], got'),
        (dict(kernel_size=True), TypeError, 'must be an int, got True'),
        (
            dict(
                proj_weight=torch.zeros(25, 9, device='meta').double(),
                proj_bias=torch.zeros(25, device='meta').double(),
                rpb=torch.zeros(2, 9, 9, device='meta').double(),
            ),
            ValueError,
            'value on cpu, proj_weight on meta',
        ),
        (dict(key=[1.0]), TypeError, 'must be a torch.Tensor, got list'),
        (dict(key=torch.zeros(1, 2, 3, 9, device='meta').double()), ValueError, 'one device'),
    ],
)
def test_wrong_arguments_of_contmix(changes, error, message):
    with pytest.raises(error, match=message):
        contmix(**changed(**changes))


def test_wrong_arguments_of_neighborhood_aggregate():
    value = torch.zeros(1, 2, 6, 7, 4)
    with pytest.raises(
        ValueError, match=r'weight must be .*\[1, 2, 6, 7, 25\], got \[1, 2, 6, 7, 9\]'
    ):
        neighborhood_aggregate(torch.zeros(1, 2, 6, 7, 9), value, 5)
    with pytest.raises(ValueError, match=r'value must be \[B, G, H, W, C\], got \[2, 6\]'):
        neighborhood_aggregate(torch.zeros(1, 2, 6, 7, 9), torch.zeros(2, 6), 3)
    weight = torch.zeros(1, 2, 6, 7, 9)
    with pytest.raises(ValueError, match='dilation must be at least 1, got 0'):
        neighborhood_aggregate(weight, value, 3, dilation=0)
    with pytest.raises(TypeError, match='dilation must be an int, got 1.5'):
        neighborhood_aggregate(weight, value, 3, dilation=1.5)
    with pytest.raises(ValueError, match='6 x 7 for kernel_size 3 and dilation 3'):
        neighborhood_aggregate(weight, value, 3, dilation=3)
    with pytest.raises(TypeError, match='one dtype, got weight torch.float64, value'):
        neighborhood_aggregate(weight.double(), value, 3)
    with pytest.raises(ValueError, match='C must be at least 1, got 0'):
        neighborhood_aggregate(weight, value[..., :0], 3)
    with pytest.raises(ValueError, match="backend must be None or one of: .* got 'natten'"):
        neighborhood_aggregate(weight, value, 3, backend='natten')
    one_row = torch.zeros(1, 2, 1, 7, 4)
    with pytest.raises(ValueError, match='at least kernel_size .* got 1 x 7'):
        neighborhood_aggregate(torch.zeros(1, 2, 1, 7, 9), one_row, 3)
