"""Backend 'reference': the plain PyTorch of ``reference.py`` behind the operators.

Runs every call on every device. Autograd does not reach into a registered operator, so
its derivative is written out here. Deterministic on the CPU; on other devices as far as
the PyTorch functions inside are, which honour ``torch.use_deterministic_algorithms``.
"""

import torch
from torch import Tensor

from overlock_mm.ops.contmix import reference
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.precision import compute_dtype


def why_not(call: Call) -> list[str]:
    """Return no reasons: this backend can run every call."""
    return []


def contmix_forward(arguments: ContMixArguments) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale = arguments
    logits = reference.contmix_logits(query, key, proj_weight, proj_bias, rpb, scale)
    out = reference.mix(logits.softmax(-1), value, kernel_size)
    return _like(value, out), logits.logsumexp(-1)


def contmix_backward(
    grad_out: Tensor, arguments: ContMixArguments, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, ...]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale = arguments
    height, width = value.shape[-2:]
    dtype = logsumexp.dtype
    q, k, p = query.to(dtype), key.to(dtype), proj_weight.to(dtype)
    tokens = value.to(dtype).permute(0, 1, 3, 4, 2)
    grad_tokens = grad_out.to(dtype).permute(0, 1, 3, 4, 2)

    logits = reference.contmix_logits(query, key, proj_weight, proj_bias, rpb, scale)
    weight = (logits - logsumexp[..., None]).exp()
    d_weight, d_tokens = neighborhood_aggregate_backward(
        grad_tokens, weight, tokens, kernel_size, dilation=1
    )
    d_logits = weight * (d_weight - (weight * d_weight).sum(-1, keepdim=True))

    affinity = torch.einsum('bgchw,bgcs->bghws', q, k) * scale
    d_affinity = d_logits @ p * scale
    index = reference.position_index(height, width, kernel_size, value.device)
    d_rpb = torch.zeros_like(rpb, dtype=dtype).flatten(1)
    d_rpb = d_rpb.index_add(1, index.flatten(), d_logits.sum(0).flatten(1))
    return (
        _like(query, torch.einsum('bghws,bgcs->bgchw', d_affinity, k)),
        torch.einsum('bghws,bgchw->bgcs', d_affinity, q).to(key.dtype).contiguous(),
        _like(value, d_tokens.permute(0, 1, 4, 2, 3)),
        (d_logits.flatten(0, -2).t() @ affinity.flatten(0, -2)).to(proj_weight.dtype).contiguous(),
        d_logits.flatten(0, -2).sum(0).to(proj_bias.dtype).contiguous(),
        d_rpb.view_as(rpb).to(rpb.dtype).contiguous(),
    )


def neighborhood_aggregate_forward(
    weight: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    return _like(value, reference.neighborhood_aggregate(weight, value, kernel_size, dilation))


def neighborhood_aggregate_backward(
    grad_out: Tensor, weight: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """See :mod:`overlock_mm.ops.contmix.backends`."""
    dtype = compute_dtype(value.dtype)
    height, width = value.shape[2:4]
    source, grad = value.to(dtype), grad_out.to(dtype)
    row_starts = reference.window_starts(height, kernel_size, value.device, dilation)
    column_starts = reference.window_starts(width, kernel_size, value.device, dilation)

    d_weight = torch.empty_like(weight)
    d_source = torch.zeros_like(source)
    for tap_row in range(kernel_size):
        row_index = row_starts + tap_row * dilation
        rows, d_rows = source.index_select(2, row_index), torch.zeros_like(source)
        for tap_column in range(kernel_size):
            column_index = column_starts + tap_column * dilation
            tap = tap_row * kernel_size + tap_column
            d_weight[..., tap] = (grad * rows.index_select(3, column_index)).sum(-1)
            d_rows.index_add_(3, column_index, grad * weight[..., tap, None].to(dtype))
        d_source.index_add_(2, row_index, d_rows)
    return d_weight, _like(value, d_source)


def _like(tensor: Tensor, result: Tensor) -> Tensor:
    """Give a result the dtype and the strides that the contract of backends requires."""
    return torch.empty_like(tensor).copy_(result)


BACKENDS.register(
    'reference',
    why_not,
    contmix_forward,
    contmix_backward,
    neighborhood_aggregate_forward,
    neighborhood_aggregate_backward,
)
