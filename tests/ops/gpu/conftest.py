"""Backends, precision and memory of the tests on a GPU."""

import pytest
import torch

from tests.ops.gpu.helpers import BACKENDS, FUSED, usable


@pytest.fixture(params=BACKENDS)
def backend(request):
    return usable(request.param)


@pytest.fixture(params=FUSED)
def fused(request):
    return usable(request.param)


@pytest.fixture(params=['triton'])
def gradients(request):
    """A backend with kernels for the gradients of the depthwise convolution."""
    return usable(request.param)


@pytest.fixture(autouse=True)
def full_precision():
    """The definition in float32 is the measure, so its products must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def nan_filled():
    """Fresh buffers hold NaN, so that an element that no kernel writes shows."""
    # Only warnings: in float64 the reference calls cuBLAS, which wants a variable set before.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def unfilled():
    """No NaN in fresh buffers: filling tens of gigabytes would take longer than the test."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.cuda.empty_cache()
