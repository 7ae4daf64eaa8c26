"""The operators as torch knows them: schemas, fakes and autograd, once for all backends.

``torch.ops.overlock_mm.contmix`` and ``neighborhood_aggregate`` with a private
backward operator each. A call selects its backend when it runs, not when it is
traced, so a compiled graph holds one operator whatever backend serves it. Arguments
are checked before, by :mod:`overlock_mm.ops.contmix.api`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.contmix.backends import Call, select_backend
from overlock_mm.ops.contmix.reference import compute_dtype

_CONTMIX = (
    'Tensor query, Tensor key, Tensor value, Tensor proj_weight, Tensor proj_bias, Tensor rpb'
)
_SCHEMAS = {
    'contmix': f'({_CONTMIX}, int kernel_size, float scale, str? backend) -> (Tensor, Tensor)',
    'contmix_backward': (
        f'(Tensor grad_out, {_CONTMIX}, Tensor out, Tensor logsumexp, int kernel_size, '
        'float scale, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)'
    ),
    'neighborhood_aggregate': (
        '(Tensor weight, Tensor value, int kernel_size, int dilation, str? backend) -> Tensor'
    ),
    'neighborhood_aggregate_backward': (
        '(Tensor grad_out, Tensor weight, Tensor value, int kernel_size, int dilation, '
        'str? backend) -> (Tensor, Tensor)'
    ),
}


def in_autocast(device_type: str) -> bool:
    """Whether autocast is on; devices that have none, such as meta, are asked too."""
    # torch.compile does not trace the question, so it is not asked where the answer is known.
    available = device_type in ('cpu', 'cuda') or torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)


def lower_to_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Activations in the dtype of autocast where that is on for their device.

    A network under autocast hands over a mixture: convolutions have lowered their
    outputs, norms have not. Backends accumulate in float32 all the same, so the lower
    dtype costs bandwidth less and softmax nothing. As everywhere in autocast, float64
    stays.
    """
    device = tensors[0].device.type
    if not in_autocast(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def nobody_watches(arguments: Sequence[Any]) -> bool:
    """No tracer, no dispatch mode, no autograd, no tensors of other classes.

    Then an operator may be run at once. A network calls those of this package a hundred times
    per image, on maps that take some ten microseconds; the dispatcher's way through Python takes
    more.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() > 0:
        return False
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors):
        return False
    return not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors)


def call_contmix(*arguments: Any) -> Tensor:
    """The operator's output; the backend is called at once where nobody watches."""
    *args, backend = arguments
    query, key, value, *_, kernel_size, _ = args
    if value.numel() > 0 and nobody_watches(args) and not in_autocast(value.device.type):
        module = select_backend(Call.contmix(query, key, value, kernel_size), backend)
        return module.contmix_forward(*args)[0]
    return torch.ops.overlock_mm.contmix(*arguments)[0]


def _contmix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    rpb: Tensor,
    kernel_size: int,
    scale: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    module = select_backend(Call.contmix(query, key, value, kernel_size), backend)
    if value.numel() == 0:
        return _contmix_fake(query, key, value)
    return module.contmix_forward(
        query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale
    )


def _contmix_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, groups, _, height, width = value.shape
    logsumexp = value.new_empty((batch, groups, height, width), dtype=compute_dtype(value.dtype))
    return torch.empty_like(value), logsumexp


def _contmix_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    rpb: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    kernel_size: int,
    scale: float,
    backend: str | None,
) -> tuple[Tensor, ...]:
    module = select_backend(Call.contmix(query, key, value, kernel_size), backend)
    inputs = (query, key, value, proj_weight, proj_bias, rpb)
    if value.numel() == 0:
        return tuple(torch.zeros_like(x) for x in inputs)
    return tuple(module.contmix_backward(grad_out, *inputs, out, logsumexp, kernel_size, scale))


def _contmix_backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    query, _, value, *_ = args
    return tuple(
        torch.empty_like(x) if x is query or x is value else x.new_empty(x.shape) for x in args[:6]
    )


def _neighborhood_aggregate(
    weight: Tensor, value: Tensor, kernel_size: int, dilation: int, backend: str | None
) -> Tensor:
    call = Call.neighborhood_aggregate(value, kernel_size, dilation)
    module = select_backend(call, backend)
    if value.numel() == 0:
        return torch.empty_like(value)
    return module.neighborhood_aggregate_forward(weight, value, kernel_size, dilation)


def _neighborhood_aggregate_fake(weight: Tensor, value: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(value)


def _neighborhood_aggregate_backward(
    grad_out: Tensor,
    weight: Tensor,
    value: Tensor,
    kernel_size: int,
    dilation: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    call = Call.neighborhood_aggregate(value, kernel_size, dilation)
    module = select_backend(call, backend)
    if value.numel() == 0:
        return torch.zeros_like(weight), torch.zeros_like(value)
    return module.neighborhood_aggregate_backward(grad_out, weight, value, kernel_size, dilation)


def _neighborhood_aggregate_backward_fake(
    grad_out: Tensor, weight: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(value)


def _contmix_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, (ctx.kernel_size, ctx.scale, ctx.backend) = inputs[:6], inputs[6:]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _contmix_autograd(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 9
    gradients = torch.ops.overlock_mm.contmix_backward(
        grad_out, *ctx.saved_tensors, ctx.kernel_size, ctx.scale, ctx.backend
    )
    return *gradients, None, None, None


def _aggregate_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, (ctx.kernel_size, ctx.dilation, ctx.backend) = inputs[:2], inputs[2:]
    ctx.save_for_backward(*tensors)


def _aggregate_autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.overlock_mm.neighborhood_aggregate_backward(
        grad_out, *ctx.saved_tensors, ctx.kernel_size, ctx.dilation, ctx.backend
    )
    return *gradients, None, None, None


def _no_double_backward(ctx: Any, *_: Any) -> None:
    # Without this formula PyTorch would warn and return wrong numbers.
    raise RuntimeError(
        'contmix and neighborhood_aggregate have no second derivative. Remedy: call the '
        'functions of overlock_mm.ops.contmix.reference, which autograd differentiates twice.'
    )


def without_autocast(impl: Callable) -> Callable:
    """A backend computes in the dtypes that it is given, and in float32 inside."""

    @functools.wraps(impl)
    def wrapper(first: Tensor, *args: Any) -> Any:
        device = first.device.type
        if not in_autocast(device):
            return impl(first, *args)
        with torch.autocast(device, enabled=False):
            return impl(first, *args)

    return wrapper


def _register(name: str, impl: Callable, fake: Callable) -> None:
    qualified = f'overlock_mm::{name}'
    torch.library.define(qualified, _SCHEMAS[name], tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, 'CompositeExplicitAutograd', without_autocast(impl))
    torch.library.register_fake(qualified, fake)


_register('contmix', _contmix, _contmix_fake)
_register('contmix_backward', _contmix_backward, _contmix_backward_fake)
_register('neighborhood_aggregate', _neighborhood_aggregate, _neighborhood_aggregate_fake)
_register(
    'neighborhood_aggregate_backward',
    _neighborhood_aggregate_backward,
    _neighborhood_aggregate_backward_fake,
)
torch.library.register_autograd(
    'overlock_mm::contmix', _contmix_autograd, setup_context=_contmix_context
)
torch.library.register_autograd(
    'overlock_mm::neighborhood_aggregate', _aggregate_autograd, setup_context=_aggregate_context
)
torch.library.register_autograd('overlock_mm::contmix_backward', _no_double_backward)
torch.library.register_autograd('overlock_mm::neighborhood_aggregate_backward', _no_double_backward)
