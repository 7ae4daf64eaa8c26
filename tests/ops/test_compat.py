"""Code written for NATTEN 0.17 runs on ours."""

import pytest
import torch

from overlock_mm.ops.compat import na2d_av


def test_na2d_av_sums_over_dilated_windows():
    """One-hot weights pick single neighbours: the window of NATTEN 0.17, tap by tap."""
    kernel_size, dilation, height, width = 3, 2, 6, 7
    value = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width, 1)
    # Tokens of the corner, an edge and the inside, and the first row and column they see:
    # of the rows of their own parity, three.
    starts = {(0, 0): (0, 0), (5, 6): (1, 2), (2, 3): (0, 1), (3, 0): (1, 0)}
    for tap in range(kernel_size**2):
        attn = torch.zeros(1, 1, height, width, kernel_size**2)
        attn[..., tap] = 1
        out = na2d_av(attn, value, kernel_size, dilation)
        for (i, j), (row, column) in starts.items():
            seen = (row + tap // 3 * dilation) * width + column + tap % 3 * dilation
            assert out[0, 0, i, j, 0] == seen


def test_a_map_smaller_than_the_dilated_window_is_refused():
    with pytest.raises(ValueError, match='5 x 7 for kernel_size 3 and dilation 2'):
        na2d_av(torch.zeros(1, 1, 5, 7, 9), torch.zeros(1, 1, 5, 7, 4), 3, 2)
