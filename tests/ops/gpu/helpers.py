"""What the tests on a GPU share."""

import pytest
import torch

from overlock_mm.ops import available_backends
from overlock_mm.ops.contmix.backends import Call
from tests.tolerances import TOLERANCES

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device.'),
]
BACKENDS = ('cuda', 'triton', 'reference')
FUSED = ('cuda', 'triton')
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def usable(name):
    call = Call('contmix', torch.device('cuda'), torch.float32, 5, query_channels=8, regions=49)
    reasons = available_backends(call)[name]
    if reasons:
        pytest.skip(f'Backend {name} cannot run here: {" ".join(reasons)}')
    return name


def assert_close(got, expected, name, dtype):
    """Within four tolerances of the activations' dtype; written so that NaN fails.

    One is for the rounding of the result. The others are for the output from which the
    gradients start, which was rounded too, and for products of TF32 numbers.
    """
    assert got.shape == expected.shape, name
    error = (got.double() - expected.double()).abs().max().item()
    bound = 4 * TOLERANCES[dtype] * expected.abs().max().item()
    assert error <= bound, f'{name}: off by {error:.3g}, may be off by {bound:.3g}'


def requires_memory(gigabytes):
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f'This needs {gigabytes} GiB of free GPU memory, {free:.0f} are there.')
