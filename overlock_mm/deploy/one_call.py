"""Blocks of the fused form in one call of the compiled extension.

Between the operators of a block, Python and the dispatcher take as long as the operators themselves
where maps are small. The blocks call these functions where nothing but the result is needed: on
the CPU, in one precision, without gradients, hooks, autocast, tracers, modes or a chosen backend.
Compiled graphs hold them as one operator each.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from overlock_mm.layers.contmix import upsampled_size
from overlock_mm.ops import extension, selection
from overlock_mm.ops.dispatch import bypasses_dispatcher, constant_when_traced, is_exporting
from overlock_mm.ops.pointwise import onednn_backend
from overlock_mm.ops.precision import in_autocast

#: What the kernels compute.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def serves(block: nn.Module, x: Tensor, *others: Tensor) -> bool:
    """Whether a block may be computed in one call.

    Args:
        block: The block.
        x: Its input.
        *others: Further inputs and all parameters.
    """
    if x.device.type != 'cpu' or x.dtype not in DTYPES or x.numel() == 0:
        return False
    tensors = (x, *others)
    if any(tensor.dtype != x.dtype for tensor in others) or in_autocast('cpu'):
        return False
    if torch.compiler.is_compiling():
        return (
            torch.compiler.is_dynamo_compiling()
            and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
            and _in_compiled_graphs()
        )
    return (
        bypasses_dispatcher(tensors)
        and _is_there()
        and not selection.any_chosen()
        and not _has_hooks(block)
    )


def fused_block(x: Tensor, operands: tuple[Tensor, ...], eps: float) -> Tensor:
    """A :class:`~overlock_mm.deploy.folding.FusedBlock`: [B, D, H, W] to the same shape."""
    onednn = _with_onednn(x.dtype)
    return torch.ops.overlock_mm_C.fused_block(x, operands, eps, onednn)


def fused_dynamic_block(
    block: Any,
    x: Tensor,
    context: Tensor,
    prior: Tensor,
    scales: tuple[Tensor, ...],
    operands: tuple[Tensor, ...],
) -> Tensor:
    """A :class:`~overlock_mm.deploy.folding.FusedDynamicBlock`, as its ``forward``."""
    contmix = block.contmix
    height, width = x.shape[-2:]
    window = contmix.kernel_sizes[1]
    resized = upsampled_size(height, width, window) if min(height, width) < window else ()
    return torch.ops.overlock_mm_C.fused_dynamic_block(
        *(x, context, prior, scales, operands),
        (block.skip_norm1.eps, block.skip_norm2.eps),
        *(block.split_sizes, contmix.groups, contmix.kernel_sizes, resized),
        _with_onednn(x.dtype),
    )


@constant_when_traced
def _with_onednn(dtype: torch.dtype) -> bool:
    """Whether products are oneDNN's: see :mod:`overlock_mm.ops.pointwise.onednn_backend`."""
    there = torch._C._get_mkldnn_enabled() and onednn_backend.why_not_there() is None
    return there and dtype == torch.float32


@constant_when_traced
def _in_compiled_graphs() -> bool:
    """Whether the graph that is traced may hold the blocks: it is for this process, no export."""
    return _is_there() and not selection.any_chosen() and not is_exporting()


@cache
def _is_there() -> bool:
    """Whether the extension loads; what compiled graphs must know of its blocks is then known."""
    if extension.why_not_loaded() is not None:
        return False
    torch.library.register_fake('overlock_mm_C::fused_block', _map)
    torch.library.register_fake(
        'overlock_mm_C::fused_dynamic_block',
        lambda x, context, *_: _map(torch.cat((x, context), 1)),
    )
    return True


def _map(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _has_hooks(block: nn.Module) -> bool:
    """Whether somebody watches a part of a block, or all modules."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    parts = [part for child in block.children() for part in child.modules()]
    return any(part._forward_hooks or part._forward_pre_hooks for part in parts)
