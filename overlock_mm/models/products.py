"""Matrix products of the deploy form, by the library that computes them fastest.

For float32 on the CPU torch calls MKL, which does not use AVX-512 on AMD's processors. oneDNN,
which torch carries too, uses it on all: docs/performance.md. In eager mode torch keeps it for
convolutions and lower precision; its operators for products are those of compiled graphs.
"""

from functools import cache

import torch
from torch import Tensor

from overlock_mm.ops.dispatch import bypasses_dispatcher
from overlock_mm.ops.precision import in_autocast


def linear(rows: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
    """``rows @ weight.mT + added``, of a matrix or a batch of matrices.

    Args:
        rows: [N, I] or [B, N, I].
        weight: [O, I] or [B, O, I].
        added: A bias [O]; or a tensor of the result's shape, which may become the result; or None.

    Returns:
        [N, O] or [B, N, O].
    """
    if _for_onednn(rows, weight, added):
        if rows.dim() == 2:
            return _onednn(rows, weight, added)
        addends = [added] * len(rows) if added is None or added.dim() == 1 else added
        parts = [_onednn(*operands) for operands in zip(rows, weight, addends, strict=True)]
        return parts[0][None] if len(parts) == 1 else torch.stack(parts)
    if added is None:
        return rows @ weight.mT
    tracked = torch.is_grad_enabled() and (added.requires_grad or rows.requires_grad)
    if added.dim() == 1 or tracked or in_autocast(rows.device.type):
        return (torch.addmm if rows.dim() == 2 else torch.baddbmm)(added, rows, weight.mT)
    return (added.addmm_ if rows.dim() == 2 else added.baddbmm_)(rows, weight.mT)


def _for_onednn(*operands: Tensor | None) -> bool:
    tensors = [x for x in operands if x is not None]
    return (
        bypasses_dispatcher(tensors)
        and _has_onednn()
        and torch._C._get_mkldnn_enabled()
        and all(x.device.type == 'cpu' and x.dtype == torch.float32 for x in tensors)
        and tensors[0].numel() > 0
        and not in_autocast('cpu')
    )


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def _onednn(rows: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
    if added is None or added.dim() == 1:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, added, 'none', [], '')
    return torch.ops.mkldnn._linear_pointwise.binary(rows, added, weight, None, 'add')
