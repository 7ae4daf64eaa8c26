"""The steps of mmcv's synchronized batch norm, which sums over processes between them.

Maps are (N, C, L) for L pixels; statistics are (C,), in float32.
"""

from __future__ import annotations

from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, widened

_FAMILY = Family(('SyncBatchNorm',), 'torch')


@_FAMILY.operator
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean of each channel, into ``mean``."""
    mean.copy_(widened(input)[0].mean((0, 2)))


@_FAMILY.operator
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean square distance of each channel from ``mean``, into ``var``."""
    var.copy_((widened(input)[0] - mean[:, None]).square().mean((0, 2)))


@_FAMILY.operator
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalize with the statistics of all processes, and keep them.

    Args:
        input: (N, C, L).
        mean: Means.
        var: Variances.
        weight: (C,).
        bias: (C,).
        running_mean: Approaches the mean by ``momentum``.
        running_var: Approaches the unbiased variance by ``momentum``.
        norm: (N, C, L), receives the normalized input, float32.
        std: Receives the standard deviations.
        output: (N, C, L), receives the result.
        eps: Added to the variances.
        momentum: Share of the new statistics.
        group_size: Number of processes, which are taken to have N * L values each.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((widened(input)[0] - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.size(0) * input.size(2) * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


@_FAMILY.operator
def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Derivatives by weight and bias, into ``grad_weight`` and ``grad_bias``."""
    (grad,) = widened(grad_output)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@_FAMILY.operator
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Derivative by the input, into ``grad_input``, from those by weight and bias."""
    (grad,) = widened(grad_output)
    through = (grad_weight[:, None] * norm + grad_bias[:, None]) / (norm.size(0) * norm.size(2))
    grad_input.copy_(weight[:, None] * (grad - through) / std[:, None])
