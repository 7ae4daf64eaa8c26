"""Our backends and the baselines, as functions of a case's tensors."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.cases import Case
from overlock_mm.ops import available_backends, contmix, neighborhood_aggregate
from overlock_mm.ops.contmix import reference
from overlock_mm.ops.contmix.backends import BACKENDS, Call

SCALE = 0.25
Implementation = Callable[..., Tensor]


def backends(case: Case, tensors: list[Tensor]) -> dict[str, Implementation]:
    """Our backends that can run the case, except the reference, which is a baseline."""
    if case.op == 'contmix':
        call = Call.contmix(*tensors, case.kernel_size, SCALE)
    else:
        call = Call.neighborhood_aggregate(*tensors, case.kernel_size)
    able = {name for name, reasons in available_backends(call).items() if not reasons}
    return {name: _backend(case, name) for name in BACKENDS if name in able - {'reference'}}


def _backend(case: Case, name: str) -> Implementation:
    if case.op == 'contmix':
        return lambda *x: contmix(*x, case.kernel_size, scale=SCALE, backend=name)
    return lambda *x: neighborhood_aggregate(*x, case.kernel_size, backend=name)


def baselines(case: Case, device: torch.device) -> dict[str, Implementation]:
    """Plain PyTorch and every other implementation that is installed."""
    k = case.kernel_size
    if case.op == 'neighborhood_aggregate':
        plain: dict[str, Implementation] = {
            'tap loop': lambda w, v: reference.neighborhood_aggregate(w, v, k),
            'unfold': lambda w, v: _aggregate_unfolded(w, v, k),
        }
        if importlib.util.find_spec('natten') is not None:
            plain['NATTEN na2d_av'] = lambda w, v: _natten()(w, v, k, 1)
        return plain

    def unfolded(*x: Tensor) -> Tensor:
        weight = reference.contmix_logits(x[0], x[1], *x[3:], SCALE).softmax(-1).to(x[2].dtype)
        return _aggregate_unfolded(weight, x[2].permute(0, 1, 3, 4, 2), k).permute(0, 1, 4, 2, 3)

    plain = {
        'chain, tap loop': lambda *x: reference.contmix(*x, k, SCALE),
        'chain, unfold': unfolded,
        'chain, unfold, compiled': torch.compile(unfolded, fullgraph=True, dynamic=False),
    }
    if device.type == 'cuda':
        attention = cache(partial(_flex_attention, case, device))  # made in its own cell
        plain['FlexAttention'] = lambda *x: attention()(*x)
    return plain


def is_compiled(name: str) -> bool:
    """Whether an implementation needs torch.compile, and so many seconds before its first call."""
    return 'compiled' in name or name == 'FlexAttention'


def _natten() -> Implementation:
    from natten import functional

    if not hasattr(functional, 'na2d_av'):
        raise RuntimeError('This NATTEN has no na2d_av; it was removed in 0.20.')
    return functional.na2d_av


def _aggregate_unfolded(weight: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """The aggregation with every window copied out: [B, G, H, W, C, K, K]."""
    height, width = value.shape[2:4]
    rows = reference.window_starts(height, kernel_size, value.device)
    columns = reference.window_starts(width, kernel_size, value.device)
    windows = value.unfold(2, kernel_size, 1).unfold(3, kernel_size, 1)
    windows = windows[:, :, rows[:, None], columns].flatten(-2)
    return (windows @ weight[..., None]).squeeze(-1)


def _flex_attention(case: Case, device: torch.device) -> Implementation:
    """FlexAttention over the windows, with the logits that the chain has computed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    h, w, k = case.height, case.width, case.kernel_size
    row_start = reference.window_starts(h, k, device)
    column_start = reference.window_starts(w, k, device)

    def offset(query: Tensor, neighbour: Tensor) -> tuple[Tensor, Tensor]:
        row = neighbour // w - row_start[query // w]
        return row, neighbour % w - column_start[query % w]

    def in_window(b: Tensor, g: Tensor, query: Tensor, neighbour: Tensor) -> Tensor:
        row, column = offset(query, neighbour)
        return (row >= 0) & (row < k) & (column >= 0) & (column < k)

    mask = create_block_mask(in_window, None, None, h * w, h * w, device=str(device))

    # In eager mode FlexAttention would compute the dense form; fullgraph makes that an error.
    @torch.compile(fullgraph=True, dynamic=False)
    def attend(*x: Tensor) -> Tensor:
        logits = reference.contmix_logits(x[0], x[1], *x[3:], SCALE).flatten(2, 3)

        def score(s: Tensor, b: Tensor, g: Tensor, query: Tensor, neighbour: Tensor) -> Tensor:
            row, column = offset(query, neighbour)
            # The score is zero, but its gradient must exist.
            return s + logits[b, g, query, (row * k + column).clamp(0, k * k - 1)]

        value = x[2].flatten(3).mT.contiguous()
        nothing = torch.zeros_like(value)
        out = flex_attention(nothing, nothing, value, score_mod=score, block_mask=mask)
        return out.mT.unflatten(3, (h, w))

    return attend


def needed_bytes(case: Case, implementation: str) -> int:
    """Estimate the memory of a baseline, to skip those that do not fit."""
    tokens = case.batch * case.groups * case.height * case.width
    copies = case.channels if 'unfold' in implementation or 'loop' in implementation else 8
    return tokens * case.kernel_size**2 * copies * 4 * 3


def free_bytes(device: torch.device) -> int:
    """Memory that is free now."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
