"""Matrix products of the fused form: the same numbers from either library."""

import pytest
import torch

from overlock_mm.ops import available_backends, pointwise_conv2d, use_backend
from overlock_mm.ops.pointwise import onednn_backend
from overlock_mm.ops.pointwise.api import _linear
from overlock_mm.ops.pointwise.backends import BACKENDS, Call

MISSING = onednn_backend.why_not_there()
needs_onednn = pytest.mark.skipif(MISSING is not None, reason=f'No oneDNN: {MISSING}')


def operands(batch, rows, added, dtype=torch.float32):
    """Rows, weight and what is added to their product, with a batch axis unless it is 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    lead = (batch,) if batch else ()
    shape = {'nothing': None, 'bias': (40,), 'map': (*lead, rows, 40)}[added]
    return normal(*lead, rows, 24), normal(*lead, 40, 24), None if shape is None else normal(*shape)


def linear(rows, weight, added, inplace=True):
    return _linear(rows, weight, added, inplace, None)


def expected(rows, weight, added):
    out = rows.double() @ weight.double().mT
    return out if added is None else out + added.double()


@pytest.fixture
def calls(monkeypatch):
    """The operands that oneDNN was given."""
    seen = []
    product = onednn_backend._product
    monkeypatch.setattr(onednn_backend, '_product', lambda *x: (seen.append(x), product(*x))[1])
    return seen


@needs_onednn
@pytest.mark.parametrize('added', ['nothing', 'bias', 'map'])
@pytest.mark.parametrize('rows', [1, 49, 200])
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_onednn(batch, rows, added, calls):
    tensors = operands(batch, rows, added)
    wanted = expected(*tensors)
    out = linear(*tensors)
    assert len(calls) == max(batch, 1)
    assert out.shape == wanted.shape
    assert (out - wanted).abs().max() < 1e-5 * wanted.abs().max()


@needs_onednn
def test_rows_may_be_slices(calls):
    rows, weight, added = operands(0, 30, 'map')
    wide = torch.randn(30, 60).index_copy(1, torch.arange(10, 34), rows)
    assert torch.allclose(linear(wide[:, 10:34], weight, added), linear(rows, weight, added))
    assert len(calls) == 2


@pytest.mark.parametrize('added', ['nothing', 'bias', 'map'])
@pytest.mark.parametrize('batch', [0, 3])
@pytest.mark.parametrize('watched', ['float64', 'autograd', 'autocast', 'switched off', 'empty'])
def test_all_else_stays_with_torch(watched, batch, added, calls):
    dtype = torch.float64 if watched == 'float64' else torch.float32
    rows, weight, other = operands(batch, 0 if watched == 'empty' else 49, added, dtype)
    rows.requires_grad_(watched == 'autograd')
    wanted = expected(rows, weight, other).detach()
    with (
        torch.autocast('cpu', enabled=watched == 'autocast'),
        torch.backends.mkldnn.flags(enabled=watched != 'switched off'),
    ):
        out = linear(rows, weight, other)
    assert not calls
    assert out.dtype == (torch.bfloat16 if watched == 'autocast' else dtype)
    assert torch.allclose(out.double(), wanted, atol=0.2 if watched == 'autocast' else 1e-4)
    if watched == 'autograd':
        (gradient,) = torch.autograd.grad(out.sum(), rows)
        assert torch.allclose(gradient, weight.sum(-2, keepdim=True).expand_as(rows), atol=1e-5)
        assert other is None or other.grad_fn is None


def test_a_compiled_graph_holds_no_operator_of_onednn(calls):
    rows, weight, other = operands(0, 8, 'bias')
    graph = torch.compile(linear, backend='aot_eager', fullgraph=True)
    assert torch.allclose(graph(rows, weight, other), linear(rows, weight, other), atol=1e-5)
    assert len(calls) <= 1  # of the call outside


def test_a_map_that_is_added_to_is_not_lost_to_autograd():
    rows, weight, other = operands(0, 8, 'map')
    other.requires_grad_()
    linear(rows, weight, other).sum().backward()
    assert torch.equal(other.grad, torch.ones_like(other))


def convolution(x, weight, bias=None, factor=None, addend=None):
    x = x if factor is None else x * factor[..., None, None]
    y = torch.nn.functional.conv2d(x.double(), weight[..., None, None].double())
    return y + (addend if bias is None else bias[:, None, None])


@pytest.mark.parametrize('backend', [None, 'reference'])
@pytest.mark.parametrize('pixels', [3, 9])  # a factor goes into the map or into the matrix
@pytest.mark.parametrize('with_factor', [False, True])
def test_it_is_a_convolution(backend, pixels, with_factor):
    torch.manual_seed(0)
    x = torch.randn(2, 24, pixels, pixels).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(40, 24), torch.randn(40)
    factor = torch.rand(2, 24) if with_factor else None
    addend = torch.randn(2, 40, pixels, pixels).to(memory_format=torch.channels_last)
    out = pointwise_conv2d(x, weight, bias, factor=factor, backend=backend)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        out.double(), convolution(x, weight, bias, factor), atol=1e-4, rtol=0
    )
    wanted = convolution(x, weight, None, factor, addend)
    kept = addend.clone()
    out = pointwise_conv2d(x, weight, factor=factor, addend=addend, backend=backend)
    torch.testing.assert_close(out.double(), wanted, atol=1e-4, rtol=0)
    assert torch.equal(addend, kept)
    out = pointwise_conv2d(x, weight, factor=factor, addend=addend, inplace=True, backend=backend)
    torch.testing.assert_close(out.double(), wanted, atol=1e-4, rtol=0)
    assert (out.data_ptr() == addend.data_ptr()) == (backend == 'reference' or MISSING is not None)


@needs_onednn
def test_the_choice_can_be_made_outside(calls):
    tensors = operands(0, 49, 'bias')
    with use_backend(pointwise='reference'):
        linear(*tensors)
    assert not calls
    with use_backend(pointwise='onednn'):
        linear(*tensors)
        with pytest.raises(RuntimeError, match='it computes float32, got torch.float64'):
            linear(*(x.double() for x in tensors))
    assert len(calls) == 1


@pytest.mark.parametrize('overload', ['default', 'binary'])
def test_a_torch_with_another_operator_keeps_its_own_product(monkeypatch, overload):
    """The operator is private: with other arguments it is not used, and the reason is given."""
    monkeypatch.setitem(onednn_backend.SCHEMAS, overload, ('Tensor', 'Tensor'))
    reason = onednn_backend.why_not_there.__wrapped__()
    monkeypatch.setattr(onednn_backend, 'why_not_there', lambda: reason)
    assert f'_linear_pointwise.{overload} with other arguments or no such operator' in reason
    assert reason in available_backends('pointwise_conv2d')['onednn']
    assert BACKENDS.select(Call.typical('pointwise_conv2d')).name == 'reference'
