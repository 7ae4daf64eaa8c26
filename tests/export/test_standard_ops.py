"""The formulations that are exported, against the definitions."""

import pytest
import torch
import torch.nn.functional as F

from overlock_mm import OverLoCK
from overlock_mm.export.contmix import contmix, tiling
from overlock_mm.export.pooling import adaptive_avg_pool2d, averaging_matrix
from overlock_mm.export.standard_ops import StandardOperators, traced_upsampled_size
from overlock_mm.layers.contmix import upsampled_size
from overlock_mm.ops.contmix import reference
from overlock_mm.ops.contmix.arguments import ContMixArguments
from tests.models.helpers import TINY, randomize_parameters


@pytest.mark.parametrize('kernel_size', (3, 5, 13))
@pytest.mark.parametrize('extra', ((0, 0), (1, 0), (0, 3), (4, 8), (9, 6)))
def test_contmix_is_the_operator(kernel_size, extra):
    torch.manual_seed(0)
    k, height, width = kernel_size, kernel_size + extra[0], kernel_size + extra[1]
    query, value = torch.randn(2, 3, 4, height, width), torch.randn(2, 3, 5, height, width)
    arguments = [query, torch.randn(2, 3, 4, 49), value]
    arguments += [torch.randn(k * k, 49), torch.randn(k * k), torch.randn(3, 2 * k - 1, 2 * k - 1)]
    expected = reference.contmix(*arguments, k, 0.3)
    out = contmix(ContMixArguments(*arguments, k, 0.3), tiling(height, width, k))
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('output_size', ((7, 7), (1, 1), (13, 19), (4, 17), (20, 25)))
def test_pooling_is_adaptive(output_size):
    x = torch.randn(2, 3, 13, 19)
    matrices = (averaging_matrix(a, b) for a, b in zip((13, 19), output_size, strict=True))
    torch.testing.assert_close(
        adaptive_avg_pool2d(x, *matrices), F.adaptive_avg_pool2d(x, output_size)
    )


@pytest.mark.parametrize('kernel_size', (5, 7, 13))
def test_size_of_small_maps_without_a_branch(kernel_size):
    for height in range(1, 20):
        for width in range(1, 60):
            size = (height, width)
            if min(size) < kernel_size:
                size = upsampled_size(*size, kernel_size)
            assert tuple(map(int, traced_upsampled_size(height, width, kernel_size))) == size


@pytest.mark.parametrize('fixed_size', (True, False))
def test_network_in_standard_operators(fixed_size):
    model = randomize_parameters(OverLoCK(TINY)).eval()
    image = torch.randn(2, 3, 70, 96)
    operators = StandardOperators(fixed_size)
    with torch.no_grad():
        expected = model(image)
        for _ in range(2):  # the second run finds what the first has kept
            with operators:
                actual = model(image)
            for got, wanted in zip(actual, expected, strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(image), expected)  # all is as before
