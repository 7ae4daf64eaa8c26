"""Matrix products of the deploy form: the same numbers from either library."""

import pytest
import torch

from overlock_mm.models import products
from overlock_mm.models.products import linear

needs_onednn = pytest.mark.skipif(
    not products._has_onednn(), reason='this build of torch has no oneDNN for matrix products'
)


def operands(batch, rows, added, dtype=torch.float32):
    """Rows, weight and what is added to their product, with a batch axis unless it is 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    lead = (batch,) if batch else ()
    shape = {'nothing': None, 'bias': (40,), 'map': (*lead, rows, 40)}[added]
    return normal(*lead, rows, 24), normal(*lead, 40, 24), None if shape is None else normal(*shape)


def expected(rows, weight, added):
    out = rows.double() @ weight.double().mT
    return out if added is None else out + added.double()


@pytest.fixture
def calls(monkeypatch):
    """The operands that oneDNN was given."""
    seen = []
    onednn = products._onednn
    monkeypatch.setattr(products, '_onednn', lambda *x: (seen.append(x), onednn(*x))[1])
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
