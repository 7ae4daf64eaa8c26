import pytest
import torch


@pytest.fixture
def nan_filled():
    """Fresh buffers, also those of the compiled kernels, hold NaN instead of what was there."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
