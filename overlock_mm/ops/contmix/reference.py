"""The definition of the operators in plain PyTorch.

Every other backend is tested against these functions, outputs and gradients.
They run on any device and dtype, are differentiable by autograd and
deterministic. The loop runs over the K * K taps of the window instead of
unfolding it, so that the forward pass holds nothing larger than its inputs.
"""

import torch
from torch import Tensor

from overlock_mm.ops.precision import compute_dtype


def window_starts(
    size: int, kernel_size: int, device: torch.device | None = None, dilation: int = 1
) -> Tensor:
    """Return the first row (or column) of every token's window, int64 [size].

    The border rule: a window never leaves the map, it is shifted inwards. With a
    dilation d the map falls into d interleaved ones (residue r has
    ``ceil((size - r) / d)`` rows), and the rule holds in each of them.
    """
    tokens = torch.arange(size, device=device)
    residue, row = tokens % dilation, tokens // dilation
    rows = (size - residue + dilation - 1) // dilation
    first = torch.minimum((row - kernel_size // 2).clamp(min=0), rows - kernel_size)
    return first * dilation + residue


def position_index(height: int, width: int, kernel_size: int, device: torch.device) -> Tensor:
    """Return every token's and tap's index into the flattened bias table, [height, width, K*K]."""
    taps = torch.arange(kernel_size, device=device)

    def offset(size: int) -> Tensor:  # [size, K], neighbour - token + K - 1
        start = window_starts(size, kernel_size, device)
        start = start - torch.arange(size, device=device)
        return start[:, None] + taps + kernel_size - 1

    rows = offset(height)[:, None, :, None]
    columns = offset(width)[None, :, None, :]
    return (rows * (2 * kernel_size - 1) + columns).flatten(-2)


def position_bias(rpb: Tensor, height: int, width: int) -> Tensor:
    """Return the relative position bias of every token and tap.

    Args:
        rpb: Bias table [G, 2K-1, 2K-1], indexed by (neighbour - token + K - 1).
        height: Rows of the map, at least K.
        width: Columns of the map, at least K.

    Returns:
        [G, height, width, K*K], taps in row-major order.
    """
    kernel_size = (rpb.shape[-1] + 1) // 2
    return rpb.flatten(1)[:, position_index(height, width, kernel_size, rpb.device)]


def neighborhood_aggregate(
    weight: Tensor, value: Tensor, kernel_size: int, dilation: int = 1
) -> Tensor:
    """See :func:`overlock_mm.ops.neighborhood_aggregate`."""
    height, width = value.shape[2:4]
    dtype = compute_dtype(value.dtype)
    weight = weight.to(dtype)
    source = value.to(dtype)
    row_starts = window_starts(height, kernel_size, value.device, dilation)
    column_starts = window_starts(width, kernel_size, value.device, dilation)

    out = torch.zeros_like(source)
    for tap_row in range(kernel_size):
        rows = source.index_select(2, row_starts + tap_row * dilation)
        for tap_column in range(kernel_size):
            neighbours = rows.index_select(3, column_starts + tap_column * dilation)
            out = out + weight[..., tap_row * kernel_size + tap_column, None] * neighbours
    return out.to(value.dtype)


def affinity(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the affinity [B, G, H, W, S] of every token to every region of the context."""
    dtype = compute_dtype(query.dtype)
    return torch.einsum('bgchw,bgcs->bghws', query.to(dtype) * scale, key.to(dtype))


def contmix_logits(
    query: Tensor, key: Tensor, proj_weight: Tensor, proj_bias: Tensor, rpb: Tensor, scale: float
) -> Tensor:
    """Return the logits [B, G, H, W, K*K] of every token's kernel."""
    height, width = query.shape[-2:]
    dtype = compute_dtype(query.dtype)
    logits = affinity(query, key, scale) @ proj_weight.to(dtype).t() + proj_bias.to(dtype)
    return logits + position_bias(rpb.to(dtype), height, width)


def contmix_kernels(
    query: Tensor, key: Tensor, proj_weight: Tensor, proj_bias: Tensor, rpb: Tensor, scale: float
) -> Tensor:
    """Return every token's dynamic kernel: weights [B, G, H, W, K*K] that sum to one."""
    return contmix_logits(query, key, proj_weight, proj_bias, rpb, scale).softmax(-1)


def mix(kernels: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """Sum of value [B, G, C, H, W] over the windows, weighted by kernels [B, G, H, W, K*K]."""
    tokens = value.permute(0, 1, 3, 4, 2).to(kernels.dtype)
    out = neighborhood_aggregate(kernels, tokens, kernel_size)
    return out.permute(0, 1, 4, 2, 3).to(value.dtype)


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
    kernels = contmix_kernels(query, key, proj_weight, proj_bias, rpb, scale)
    return mix(kernels, value, kernel_size)
