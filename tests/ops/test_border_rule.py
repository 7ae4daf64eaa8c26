"""The border rule of the compiled backends, from both sides, against its definition."""

import pytest
import torch

from overlock_mm.ops import extension
from overlock_mm.ops.contmix import reference

pytestmark = pytest.mark.skipif(
    extension.why_not_loaded() is not None,
    reason=f'The header is reached through the extension: {extension.why_not_loaded()}',
)

CASES = [
    (size, kernel_size, dilation)
    for kernel_size in range(3, 18, 2)
    for dilation in (1, 2, 3)
    for extra in (0, 1, 2, kernel_size, 20)
    for size in [kernel_size * dilation + extra]
]


def window(token, size, kernel_size, dilation):
    """The sub-map of the token's residue, and in it the window shifted inwards."""
    submap = list(range(token % dilation, size, dilation))
    centre = submap.index(token)
    start = min(max(centre - kernel_size // 2, 0), len(submap) - kernel_size)
    return submap[start : start + kernel_size]


@pytest.mark.parametrize(('size', 'kernel_size', 'dilation'), CASES)
def test_windows_and_their_inverse(size, kernel_size, dilation):
    table = torch.ops.overlock_mm_C.border_rule(size, kernel_size, dilation)
    start, first, last = table.tolist()
    windows = [window(token, size, kernel_size, dilation) for token in range(size)]
    assert start == [w[0] for w in windows]
    assert start == reference.window_starts(size, kernel_size, dilation=dilation).tolist()
    for row in range(size):
        holders = [token for token in range(size) if row in windows[token]]
        assert holders == list(range(first[row], last[row] + 1, dilation))
