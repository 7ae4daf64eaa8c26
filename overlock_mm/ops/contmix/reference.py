"""The definition of the operators in plain PyTorch.

Every other backend is tested against these functions, outputs and gradients.
They run on any device and dtype, are differentiable by autograd and
deterministic. The loop runs over the K * K taps of the window instead of
unfolding it, so that the forward pass holds nothing larger than its inputs.
"""

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of accumulation: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def window_starts(size: int, kernel_size: int, device: torch.device) -> Tensor:
    """First row (or column) of every token's window, int64 of shape [size].

    The border rule: a window never leaves the map, it is shifted inwards.
    """
    centres = torch.arange(size, device=device)
    return (centres - kernel_size // 2).clamp(0, size - kernel_size)


def position_bias(rpb: Tensor, height: int, width: int) -> Tensor:
    """Relative position bias of every token and tap.

    Args:
        rpb: Bias table [G, 2K-1, 2K-1], indexed by (neighbour - token + K - 1).
        height: Rows of the map, at least K.
        width: Columns of the map, at least K.

    Returns:
        [G, height, width, K*K], taps in row-major order.
    """
    kernel_size = (rpb.shape[-1] + 1) // 2
    taps = torch.arange(kernel_size, device=rpb.device)

    def table_index(size: int) -> Tensor:  # [size, K]
        offset = window_starts(size, kernel_size, rpb.device)
        offset = offset - torch.arange(size, device=rpb.device)
        return offset[:, None] + taps + kernel_size - 1

    rows = table_index(height)[:, None, :, None]
    columns = table_index(width)[None, :, None, :]
    return rpb[:, rows, columns].flatten(-2)


def neighborhood_aggregate(weight: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """See :func:`overlock_mm.ops.neighborhood_aggregate`."""
    height, width = value.shape[2:4]
    dtype = compute_dtype(value.dtype)
    weight = weight.to(dtype)
    source = value.to(dtype)
    row_starts = window_starts(height, kernel_size, value.device)
    column_starts = window_starts(width, kernel_size, value.device)

    out = torch.zeros_like(source)
    for tap_row in range(kernel_size):
        rows = source.index_select(2, row_starts + tap_row)
        for tap_column in range(kernel_size):
            neighbours = rows.index_select(3, column_starts + tap_column)
            out = out + weight[..., tap_row * kernel_size + tap_column, None] * neighbours
    return out.to(value.dtype)


def contmix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    rpb: Tensor,
    kernel_size: int,
    scale: float,
) -> Tensor:
    """See :func:`overlock_mm.ops.contmix`."""
    height, width = value.shape[-2:]
    dtype = compute_dtype(value.dtype)
    # Mixed precision must not reach the logits: their softmax is taken in `dtype`.
    with torch.autocast(value.device.type, enabled=False):
        affinity = torch.einsum('bgchw,bgcs->bghws', query.to(dtype) * scale, key.to(dtype))
        logits = affinity @ proj_weight.to(dtype).t() + proj_bias.to(dtype)
        logits = logits + position_bias(rpb.to(dtype), height, width)
        weight = logits.softmax(-1)  # [B, G, H, W, K*K]
        tokens = value.to(dtype).permute(0, 1, 3, 4, 2)
        out = neighborhood_aggregate(weight, tokens, kernel_size)
    return out.permute(0, 1, 4, 2, 3).to(value.dtype)
