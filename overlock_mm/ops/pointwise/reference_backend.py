"""Backend 'reference': torch's own matrix product."""

import torch
from torch import Tensor

from overlock_mm.ops.pointwise.backends import BACKENDS, Call


def why_not(call: Call) -> list[str]:
    """Return no reasons: this backend can run every call."""
    return []


def linear(rows: Tensor, weight: Tensor, added: Tensor | None, inplace: bool) -> Tensor:
    """See :mod:`overlock_mm.ops.pointwise.backends`."""
    if added is None:
        return rows @ weight.mT
    if inplace and added.dim() > 1:
        return (added.addmm_ if rows.dim() == 2 else added.baddbmm_)(rows, weight.mT)
    return (torch.addmm if rows.dim() == 2 else torch.baddbmm)(added, rows, weight.mT)


BACKENDS.register('reference', why_not, linear)
