import pytest
import torch

from overlock_mm.layers.contmix import upsampled_size
from overlock_mm.models import ContMix
from tests.models.helpers import randomize_parameters

BN = dict(type='BN')


@pytest.mark.parametrize(
    ('size', 'kernel_size', 'expected'),
    [
        ((3, 27), 13, (13, 116)),  # 13 / 3 * 27 is 116.999..., and is truncated
        ((27, 3), 13, (116, 13)),
        ((5, 5), 13, (13, 13)),
        ((1, 63), 7, (7, 441)),
        ((11, 11), 15, (15, 15)),  # 15 / 11 * 11 is 14.999...
    ],
)
def test_upsampled_size(size, kernel_size, expected):
    assert upsampled_size(*size, kernel_size) == expected


@pytest.mark.parametrize('size', [(13, 13), (14, 20), (4, 5), (1, 1), (2, 30)])
def test_any_map_is_mixed_to_its_own_size(size):
    block = randomize_parameters(ContMix(32, 16, 32, 2, 13, 5, BN)).eval()
    out = block(torch.randn(2, 32, *size), torch.randn(2, 16, *size), torch.randn(2, 32, *size))
    assert out.shape == (2, 32, *size)
    assert out.isfinite().all()


def test_scale_is_the_published_one():
    block = ContMix(32, 16, 32, 2, 13, 5, BN)
    assert block.groups == 4
    assert block.scale == (32 / 4) ** -0.5


def test_context_steers_the_kernels():
    """Other keys, same values: the output must change, as the kernels do."""
    block = randomize_parameters(ContMix(32, 16, 32, 2, 7, 5, BN)).eval()
    torch.manual_seed(1)
    query, value = torch.randn(1, 32, 14, 14), torch.randn(1, 32, 14, 14)
    one, other = (block(query, torch.randn(1, 16, 14, 14), value) for _ in range(2))
    assert not torch.allclose(one, other, atol=1e-3)
