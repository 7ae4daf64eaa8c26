"""Blocks of the fused form in one call of the compiled extension.

Between the operators of a block, Python and the dispatcher take as long as the operators themselves
where maps are small. The blocks call these functions where nothing but the result is needed: on
the CPU, in one precision, without gradients, hooks, autocast, tracers, modes or a chosen backend.
Compiled graphs hold them as one operator each.
"""

from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

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


class Block(Protocol):
    """A block of the fused form whose parameters are constants in its parts."""

    def operands(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the C++ block."""


def operands_of(block: Block, x: Tensor, *others: Tensor) -> tuple[Tensor, ...] | None:
    """Return a block's parameters if it may be computed in one call, else None.

    Args:
        block: The block, an ``nn.Module``.
        x: Its input.
        *others: Further inputs.
    """
    if not x.is_cpu or x.dtype not in DTYPES or x.numel() == 0 or in_autocast('cpu'):
        return None
    compiling = torch.compiler.is_compiling()
    if not compiling and not _is_there():
        return None
    operands = block.operands() if compiling else _unwatched_operands(block)
    if operands is None or any(y.dtype != x.dtype for y in (*others, *operands)):
        return None
    tensors = (x, *others, *operands)
    if compiling:
        served = (
            torch.compiler.is_dynamo_compiling()
            and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
            and _in_compiled_graphs()
        )
    else:
        served = bypasses_dispatcher(tensors) and not selection.any_chosen()
    return operands if served else None


def fused_block(x: Tensor, operands: tuple[Tensor, ...], eps: float) -> Tensor:
    """A :class:`~overlock_mm.deploy.folding.FusedBlock`: [B, D, H, W] to the same shape."""
    onednn = _with_onednn(x.dtype)
    return torch.ops.overlock_mm_C.fused_block(x, operands, eps, onednn)


def fused_dynamic_block(
    block: Any, x: Tensor, context: Tensor, prior: Tensor, operands: tuple[Tensor, ...]
) -> Tensor:
    """A :class:`~overlock_mm.deploy.folding.FusedDynamicBlock`, as its ``forward``."""
    contmix = block.contmix
    scales, operands = operands[: block.scale_count], operands[block.scale_count :]
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


class _Parts:
    """Where a block's parameters are, and who could watch or replace them.

    It is found once per block, as walking its modules takes as long as its computation.
    """

    def __init__(self, block: nn.Module, operands: tuple[Tensor, ...]) -> None:
        modules = list(block.modules())
        self.watchable = modules[1:]
        self.children = [
            (module._modules, name, child)
            for module in modules
            for name, child in module._modules.items()
        ]
        slots: dict[int, tuple[dict[str, Any], str]] = {
            id(parameter): (module._parameters, name)
            for module in modules
            for name, parameter in module._parameters.items()
        }
        self.slots = [slots.get(id(operand), ({}, 'computed')) for operand in operands]

    def are_replaced(self) -> bool:
        return any(siblings.get(name) is not child for siblings, name, child in self.children)

    def have_hooks(self) -> bool:
        return any(part._forward_hooks or part._forward_pre_hooks for part in self.watchable)

    def operands(self) -> tuple[Tensor, ...] | None:
        """Return the parameters; None if one is computed now, as by a parametrization."""
        try:
            return tuple(parameters[name] for parameters, name in self.slots)
        except KeyError:
            return None


_parts: WeakKeyDictionary[Any, _Parts] = WeakKeyDictionary()


def _unwatched_operands(block: Any) -> tuple[Tensor, ...] | None:
    """Return the parameters of a block; None if somebody watches a part of it, or all modules."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return None
    parts = _parts.get(block)
    if parts is None or parts.are_replaced():
        parts = _parts[block] = _Parts(block, block.operands())
    return None if parts.have_hooks() else parts.operands()
