"""Functions that other libraries have removed, with the same arguments."""

from torch import Tensor

from overlock_mm.ops.contmix.api import neighborhood_aggregate


def na2d_av(attn: Tensor, value: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """Replace ``natten.functional.na2d_av`` of NATTEN 0.17, which version 0.20 removed.

    Args:
        attn: Attention weights [B, heads, H, W, K*K].
        value: [B, heads, H, W, C].
        kernel_size: K, odd, 3 to 17; K * dilation is at most H and W.
        dilation: Distance of neighbouring taps.

    Returns:
        [B, heads, H, W, C].

    Raises:
        ValueError: A shape, device, kernel size or dilation is not as stated.
        TypeError: A dtype is not as stated.
    """
    return neighborhood_aggregate(attn, value, kernel_size, dilation=dilation)
