"""A GPU backend solves a small problem before it is used; here the CPU stands for the GPU."""

import pytest
import torch

from overlock_mm.ops import available_backends, contmix, self_test
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.depthwise.backends import BACKENDS as DEPTHWISE
from overlock_mm.ops.depthwise.backends import Call as DepthwiseCall
from overlock_mm.ops.selection import Backend
from tests.ops import helpers
from tests.ops.helpers import Shape
from tests.ops.test_cpu_backends import needs_extension

CPU = torch.device('cpu')
CALLS = [
    (BACKENDS, Call(op, CPU, dtype, 7, dilation, 8, queries, regions, gradient))
    for dtype in self_test.TOLERANCES
    for op, dilation, queries, regions in (
        ('contmix', 1, 16, 49),
        ('neighborhood_aggregate', 2, 0, 0),
    )
    for gradient in (False, True)
] + [
    (DEPTHWISE, DepthwiseCall(op, CPU, dtype, gradient=gradient))
    for dtype in self_test.TOLERANCES
    for op, gradient in (
        ('depthwise_conv2d', False),
        ('depthwise_conv2d', True),
        ('depthwise_conv2d_norm', False),
        ('depthwise_conv2d_stats', False),
    )
]


def _name(value):
    return value.family if value in (BACKENDS, DEPTHWISE) else str(value)


pytestmark = needs_extension


@pytest.fixture(autouse=True)
def tested(monkeypatch):
    """As on a GPU, and nothing tested yet."""
    monkeypatch.setattr(self_test, 'DEVICES', ('cpu',))
    monkeypatch.setattr(self_test, '_verdicts', {})


@pytest.fixture
def replaced(monkeypatch):
    """Replace a function of the backend 'cpu'."""

    def replace(name, function):
        right = BACKENDS['cpu']
        functions = {**right.functions, name: function}
        monkeypatch.setitem(BACKENDS._backends, 'cpu', Backend('cpu', right.why_not, functions))

    return replace


def contmix_call(gradient=False):
    return Call('contmix', CPU, torch.float32, 3, 1, 4, 4, 4, gradient)


@pytest.mark.parametrize(('family', 'call'), CALLS, ids=_name)
def test_a_right_backend_is_used(family, call):
    assert family.select(call).name == 'cpu'
    assert list(self_test._verdicts.values()) == [None]


def test_one_that_differs_is_replaced_with_a_warning(replaced, caplog):
    right = BACKENDS['cpu'].functions['contmix_forward']

    def wrong(arguments):
        out, logsumexp = right(arguments)
        out[..., -1, -1] *= 1.001
        return out, logsumexp

    replaced('contmix_forward', wrong)
    for _ in range(2):
        assert BACKENDS.select(contmix_call()).name == 'reference'
    warned = "Backend 'cpu' of contmix is not used: In a self-test on cpu in float32 result 0 of 2"
    (message,) = [text for text in caplog.messages if text.startswith(warned)]
    assert ' and 1.0e-04 is allowed. Please report this' in message
    with pytest.raises(RuntimeError, match="'cpu' cannot run contmix here: .*self-test"):
        BACKENDS.select(contmix_call(), 'cpu')
    assert 'self-test' in available_backends(contmix_call())['cpu'][0]


def test_one_that_raises_is_replaced(replaced):
    def broken(arguments):
        raise RuntimeError('no kernel image\nis available')

    replaced('contmix_forward', broken)
    tensors = helpers.contmix_arguments(Shape(1, 1, 4, 4, 5, 5, 3), torch.float32)
    expected = contmix(*tensors, 3, backend='reference')
    torch.testing.assert_close(contmix(*tensors, 3), expected, rtol=0, atol=0)
    (verdict,) = self_test._verdicts.values()
    assert 'it raised RuntimeError: no kernel image is available Please report' in verdict


def test_a_full_memory_is_no_verdict(replaced):
    def out_of_memory(arguments):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    replaced('contmix_forward', out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        BACKENDS.select(contmix_call())
    assert self_test._verdicts == {}


@pytest.mark.parametrize(('family', 'call'), CALLS[::4], ids=_name)
def test_another_default_device_does_not_reach_it(family, call):
    with torch.device('meta'):
        assert family.select(call).name == 'cpu'
    assert list(self_test._verdicts.values()) == [None]


def test_a_wrong_gradient_does_not_stop_inference(replaced):
    replaced(
        'contmix_backward', lambda grad, arguments, *_: [x * torch.nan for x in arguments.tensors]
    )
    assert BACKENDS.select(contmix_call()).name == 'cpu'
    assert BACKENDS.select(contmix_call(gradient=True)).name == 'reference'
    tensors = helpers.contmix_arguments(Shape(1, 1, 4, 4, 5, 5, 3), torch.float32)
    _, gradients = helpers.with_gradients(lambda *x: contmix(*x, 3), tensors)
    assert all(x.isfinite().all() for x in gradients)


def test_it_is_put_off_while_something_is_recorded(replaced):
    replaced('contmix_forward', None)
    traced = []

    def function(x):
        traced.append(BACKENDS.select(contmix_call()).name)
        return x + 1

    graph = torch.jit.trace(function, torch.zeros(1), check_trace=False).graph
    assert traced == ['cpu'] and len(list(graph.nodes())) <= 3
    assert self_test._verdicts == {}


def test_it_can_be_turned_off(replaced, monkeypatch):
    monkeypatch.setenv('OVERLOCK_SELF_TEST', '0')
    replaced('contmix_forward', None)
    assert BACKENDS.select(contmix_call()).name == 'cpu'


def test_autocast_does_not_reach_it():
    with torch.autocast('cpu', torch.bfloat16):
        assert BACKENDS.select(contmix_call(gradient=True)).name == 'cpu'


def test_the_cpu_is_trusted(monkeypatch):
    monkeypatch.undo()
    assert self_test.DEVICES == ('cuda',)
    assert self_test.why_not_trusted('contmix', 'cpu', None, {}, {}, contmix_call()) is None
