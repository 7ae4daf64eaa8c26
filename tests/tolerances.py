"""How far a result may be from the float64 reference, relative to its largest value."""

import torch

#: float32 and float64: rounding of sums of a few hundred terms. The others: one rounding of
#: the result to its dtype, as sums are taken in float32.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 5e-6,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str = 'result') -> None:
    """Within the tolerance of its dtype of a float64 reference, and of its shape."""
    assert actual.shape == expected.shape, name
    if actual.numel() == 0:
        return
    error = (actual.detach().double() - expected.detach()).abs().max().item()
    bound = TOLERANCES[actual.dtype] * expected.abs().max().item()
    # Written so that NaN fails.
    assert error <= bound, f'{name}: off by {error:.3g}, may be off by {bound:.3g}'
