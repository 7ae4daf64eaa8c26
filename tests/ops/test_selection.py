"""Which backend runs a call, what it says, and what it refuses."""

import logging
import subprocess
import sys

import pytest
import torch

from overlock_mm.ops import available_backends, contmix
from overlock_mm.ops.contmix import backends, cpu_backend, cuda_backend, extension
from overlock_mm.ops.contmix.backends import BACKENDS, Call, select_backend
from tests.ops import helpers
from tests.ops.helpers import Shape
from tests.ops.test_cpu_backends import needs_extension

CPU = torch.device('cpu')
CALL = Call('contmix', CPU, torch.float32, 7, query_channels=16, regions=49)
# The device of a call that is never made.
CUDA_CALL = Call('contmix', torch.device('cuda'), torch.float32, 7, query_channels=16, regions=49)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(backends, '_logged', set())


@pytest.fixture
def no_extension(monkeypatch):
    reason = 'the compiled extension overlock_mm._C is not installed. Remedy: build it.'
    monkeypatch.setattr(extension, 'why_not_loaded', lambda: reason)


def test_the_order_is_that_of_the_documentation():
    assert list(BACKENDS) == ['cuda', 'triton', 'cpu', 'reference']
    assert list(available_backends()) == list(BACKENDS)


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
        assert select_backend(CALL) is cpu_backend
    assert caplog.messages == ["contmix on cpu runs on backend 'cpu'."]


@pytest.mark.parametrize('call', [CALL, CUDA_CALL])
def test_the_slow_reference_is_never_chosen_in_silence(call, no_extension, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, BACKENDS['triton'], cuda_backend)
    for _ in range(2):
        assert select_backend(call).__name__ == BACKENDS['reference']
    (record,) = caplog.records
    assert record.name == 'overlock_mm'
    assert record.levelno == logging.WARNING
    assert "slow backend 'reference'" in record.message
    assert 'Remedy: build it' in record.message


def test_a_forced_backend_never_falls_back(no_extension):
    with pytest.raises(RuntimeError, match=r"'cuda' cannot run contmix here: \(1\) .* \(2\) .*"):
        select_backend(CALL, 'cuda')
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


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="one of: cuda, triton, cpu, reference; got 'gpu'"):
        select_backend(CALL, 'gpu')


@pytest.mark.slow
def test_import_is_quiet_and_loads_no_backend():
    code = (
        # With some versions of torch these import Triton themselves.
        'import sys, torch, mmengine.optim; before = set(sys.modules); import overlock_mm.ops; '
        'print([m for m in set(sys.modules) - before if m in ("overlock_mm._C", "triton") '
        'or m.startswith("overlock_mm.ops") and m.endswith("_backend")])'
    )
    run = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == '[]\n'
    assert run.stderr == ''
