"""Backend 'onednn': oneDNN's matrix product for float32 on the CPU.

There torch calls MKL, which does not use AVX-512 on AMD's processors. oneDNN, which torch carries
too, uses it on all: docs/performance.md. In eager mode torch keeps it for convolutions and lower
precision; its operators for products are those of compiled graphs. They are private, so their
schemas are compared with those that this file was written for.
"""

from functools import cache

import torch
from torch import Tensor

from overlock_mm.ops.pointwise.backends import BACKENDS, Call

#: Overload of ``torch.ops.mkldnn._linear_pointwise`` -> types of its arguments.
SCHEMAS = {
    'default': (
        *('Tensor', 'Tensor', 'Optional[Tensor]', 'str'),
        *('List[Optional[number]]', 'Optional[str]'),
    ),
    'binary': ('Tensor', 'Tensor', 'Tensor', 'Optional[Tensor]', 'str'),
}


@cache
def why_not_there() -> str | None:
    """Return the reason why this torch has no such product, or None."""
    if not torch.backends.mkldnn.is_available():
        return 'this build of torch has no oneDNN.'
    operator = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    for overload, expected in SCHEMAS.items():
        schema = getattr(getattr(operator, overload, None), '_schema', None)
        types = None if schema is None else tuple(str(x.type) for x in schema.arguments)
        if types != expected:
            return (
                f'torch {torch.__version__} has torch.ops.mkldnn._linear_pointwise.{overload} with '
                f'other arguments or no such operator: {types} instead of {expected}.'
            )
    return None


def why_not(call: Call) -> list[str]:
    """Return all reasons why this backend cannot run a call."""
    reasons = []
    if call.device.type != 'cpu':
        reasons.append(f'it needs tensors on the CPU, got {call.device}.')
    if call.dtype != torch.float32:
        reasons.append(f'it computes float32, got {call.dtype}.')
    if not call.simple:
        reasons.append(
            'it takes tensors of one dtype that are not empty, and serves no gradient, autocast, '
            'tracer, mode or transform.'
        )
    if not torch._C._get_mkldnn_enabled():
        reasons.append('torch.backends.mkldnn is switched off.')
    missing = why_not_there()
    if missing is not None:
        reasons.append(missing)
    return reasons


def linear(rows: Tensor, weight: Tensor, added: Tensor | None, inplace: bool) -> Tensor:
    """See :mod:`overlock_mm.ops.pointwise.backends`. The result is always in new memory."""
    if rows.dim() == 2:
        return _product(rows, weight, added)
    addends = [added] * len(rows) if added is None or added.dim() == 1 else added
    parts = [_product(*operands) for operands in zip(rows, weight, addends, strict=True)]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _product(rows: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
    if added is None or added.dim() == 1:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, added, 'none', [], '')
    return torch.ops.mkldnn._linear_pointwise.binary(rows, added, weight, None, 'add')


BACKENDS.register('onednn', why_not, linear)
