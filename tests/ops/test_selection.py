"""Which backend runs a call, what it says, and what it refuses."""

import dataclasses
import logging
import re
import subprocess
import sys

import pytest
import torch

from overlock_mm.ops import (
    available_backends,
    contmix,
    depthwise_conv2d,
    extension,
    selection,
    triton_runtime,
)
from overlock_mm.ops import use_backend as use
from overlock_mm.ops.contmix import cuda_backend
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.depthwise import backends as depthwise
from tests.ops import helpers
from tests.ops.helpers import Shape
from tests.ops.test_cpu_backends import needs_extension

CPU = torch.device('cpu')
CALL = Call('contmix', CPU, torch.float32, 7, query_channels=16, regions=49)
# The device of a call that is never made.
CUDA_CALL = Call('contmix', torch.device('cuda'), torch.float32, 7, query_channels=16, regions=49)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(selection, '_logged', set())
    monkeypatch.setattr(selection, '_selected', {})


@pytest.fixture
def no_extension(monkeypatch):
    reason = 'the compiled extension overlock_mm._C is not installed. Remedy: build it.'
    monkeypatch.setattr(extension, 'why_not_loaded', lambda: reason)


def test_the_order_is_that_of_the_documentation():
    assert list(BACKENDS) == ['cpu', 'triton', 'cuda', 'reference']
    assert list(depthwise.BACKENDS) == ['cpu', 'triton', 'cuda', 'reference']
    assert list(available_backends()) == list(BACKENDS)
    assert list(available_backends('depthwise_conv2d')) == list(depthwise.BACKENDS)


def test_every_backend_explains_itself(no_extension):
    reasons = available_backends(CALL)
    assert reasons['reference'] == []
    assert 'overlock_mm._C is not installed' in reasons['cpu'][0]
    assert len(reasons['cuda']) == 2  # wrong device, missing binary: all reasons, not the first
    assert all(reasons[name] for name in ('cuda', 'triton', 'cpu'))


@needs_extension
def test_the_first_that_can_is_chosen_and_logged_once(caplog):
    caplog.set_level(logging.INFO, 'overlock_mm')
    for _ in range(2):
        assert BACKENDS.select(CALL).name == 'cpu'
    assert caplog.messages == ["contmix on cpu runs on backend 'cpu'."]


@pytest.fixture
def asked(monkeypatch):
    """The calls about which the backend 'triton' is asked, which runs all of them."""
    calls = []
    triton = dataclasses.replace(BACKENDS['triton'], why_not=lambda call: calls.append(call) or [])
    monkeypatch.setitem(BACKENDS._backends, 'triton', triton)
    monkeypatch.setenv('OVERLOCK_SELF_TEST', '0')
    return calls


def test_backends_are_asked_once_about_the_calls_of_a_gpu(asked):
    for call in (CUDA_CALL, dataclasses.replace(CUDA_CALL, elements=7)):
        assert BACKENDS.select(call).name == 'triton'
        assert BACKENDS.select(call, 'triton').name == 'triton'
    assert asked == [CUDA_CALL, CUDA_CALL]  # chosen and forced
    BACKENDS.select(dataclasses.replace(CUDA_CALL, dtype=torch.float16))
    assert len(asked) == 3
    with use(contmix='reference'):
        assert BACKENDS.select(CUDA_CALL).name == 'reference'
    with pytest.raises(RuntimeError, match="'cpu' cannot run"):
        BACKENDS.select(CUDA_CALL, 'cpu')


def test_a_new_preference_counts_at_once(asked, monkeypatch):
    assert BACKENDS.select(CUDA_CALL).name == 'triton'
    monkeypatch.setattr(selection, 'preferred', lambda call: 'reference')
    assert BACKENDS.select(CUDA_CALL).name == 'reference'


def test_a_choice_without_a_self_test_is_not_kept(asked, monkeypatch):
    monkeypatch.setattr(selection, 'is_watched', lambda: True)
    for _ in range(2):
        BACKENDS.select(CUDA_CALL)
    assert len(asked) == 2


@pytest.mark.parametrize('call', [CALL, CUDA_CALL])
def test_the_slow_reference_is_never_chosen_in_silence(call, no_extension, monkeypatch, caplog):
    monkeypatch.setattr(triton_runtime, 'why_not_installed', lambda: 'Triton is not installed.')
    for _ in range(2):
        assert BACKENDS.select(call).name == 'reference'
    (record,) = caplog.records
    assert record.name == 'overlock_mm'
    assert record.levelno == logging.WARNING
    assert "slow backend 'reference'" in record.message
    assert 'Remedy: build it' in record.message


def test_a_forced_backend_never_falls_back(no_extension):
    with pytest.raises(RuntimeError, match=r"'cuda' cannot run contmix here: \(1\) .* \(2\) .*"):
        BACKENDS.select(CALL, 'cuda')
    tensors = helpers.contmix_arguments(Shape(1, 1, 4, 4, 5, 5, 3), torch.float32)
    with pytest.raises(RuntimeError, match="'cpu' cannot run contmix here: .*not installed"):
        contmix(*tensors, 3, backend='cpu')


@needs_extension
def test_an_extension_without_cuda_kernels_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(extension, 'has_kernels', lambda key: False)
    reasons = ' '.join(cuda_backend.why_not(CUDA_CALL))
    assert 'compiled without CUDA. Remedy: reinstall with FORCE_CUDA=1' in reasons


@needs_extension
def test_an_extension_without_code_for_the_card_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (12, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Card')
    monkeypatch.setattr(extension, 'has_kernels', lambda key: True)
    monkeypatch.setattr(extension, 'has_cuda_code', lambda index: False)
    (reason,) = cuda_backend.why_not(CUDA_CALL)
    assert 'no code for compute capability 12.0 of Card' in reason
    assert 'TORCH_CUDA_ARCH_LIST=12.0' in reason
    monkeypatch.setattr(extension, 'has_cuda_code', lambda index: True)
    assert cuda_backend.why_not(CUDA_CALL) == []


def test_an_extension_of_another_torch_is_reported(monkeypatch):
    def broken(name):
        raise ImportError('undefined symbol: torch')

    monkeypatch.setattr(extension.importlib, 'import_module', broken)
    reason = extension.why_not_loaded.__wrapped__()
    assert 'does not load: undefined symbol: torch. Remedy' in reason


def test_an_extension_of_another_version_is_reported(monkeypatch):
    monkeypatch.setattr(extension.importlib, 'import_module', lambda name: None)
    monkeypatch.setattr(extension, 'INTERFACE', -1)
    reason = extension.why_not_loaded.__wrapped__()
    assert re.search(r'another version .* has number \d+, not -1\. Remedy', reason)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="one of: cpu, triton, cuda, reference; got 'gpu'"):
        BACKENDS.select(CALL, 'gpu')


def test_an_operator_that_does_not_exist():
    with pytest.raises(ValueError, match="one of: contmix, neighborhood_aggregate, .*; got 'conv'"):
        available_backends('conv')


def test_a_backend_registers_itself_whole_and_once():
    family = selection.Backends('test', operators=(), functions=('forward',))

    def forward():
        pass

    family.register('mine', lambda call: [], forward)
    assert list(family) == ['mine']
    assert family['mine'].functions['forward'] is forward
    with pytest.raises(ValueError, match="has a backend 'mine' already"):
        family.register('mine', lambda call: [], forward)
    with pytest.raises(ValueError, match="must have the functions forward; 'other' has print"):
        family.register('other', lambda call: [], print)
    del selection._FAMILIES['test']


def test_use_backend(no_extension):
    image, weight = torch.rand(1, 4, 5, 5), torch.rand(4, 1, 3, 3)
    with use(contmix='cpu'):
        with pytest.raises(RuntimeError, match="'cpu' cannot run contmix here: .*not installed"):
            BACKENDS.select(CALL)
        assert BACKENDS.select(CALL, 'reference').name == 'reference'  # a call's own comes first
        depthwise_conv2d(image, weight)  # another family
        with use(depthwise='cpu'):
            with pytest.raises(RuntimeError, match="'cpu' cannot run depthwise_conv2d here"):
                depthwise_conv2d(image, weight)
            with pytest.raises(RuntimeError, match="'cpu' cannot run contmix here"):
                BACKENDS.select(CALL)
        with use(contmix=None):
            assert BACKENDS.select(CALL).name == 'reference'
    assert BACKENDS.select(CALL).name == 'reference'


def test_use_backend_refuses_unknown_names():
    with (
        pytest.raises(ValueError, match="one of: contmix, depthwise.*; got 'mixing'"),
        use(mixing='cpu'),
    ):
        pass
    with pytest.raises(ValueError, match="one of: cpu, .*; got 'gpu'"), use(contmix='gpu'):
        pass


@needs_extension
def test_a_gradient_has_the_backend_of_its_call(monkeypatch):
    tensors = helpers.contmix_arguments(Shape(1, 1, 4, 4, 5, 5, 3), torch.float32)
    with use(contmix='reference'):
        out = contmix(*tensors, 3)
    functions = BACKENDS['reference'].functions
    called = []

    def watched(*args):
        called.append(args)
        return functions['contmix_backward'](*args)

    backend = dataclasses.replace(
        BACKENDS['reference'], functions={**functions, 'contmix_backward': watched}
    )
    monkeypatch.setitem(BACKENDS._backends, 'reference', backend)
    out.sum().backward()
    assert len(called) == 1


@pytest.mark.slow
def test_import_is_quiet_and_loads_neither_binary_nor_triton():
    code = (
        # With some versions of torch these import Triton themselves.
        'import sys, torch, mmengine.optim; before = set(sys.modules); import overlock_mm.ops; '
        'print([m for m in set(sys.modules) - before if m in ("overlock_mm._C", "triton") '
        'or m.startswith("overlock_mm.ops") and m.endswith("_kernels")])'
    )
    run = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == '[]\n'
    assert run.stderr == ''
