"""Registration of ContMix and the aggregation with torch: schemas, fakes and gradients.

``torch.ops.overlock_mm.contmix`` and ``neighborhood_aggregate`` with a private operator each for
the gradient: see :mod:`overlock_mm.ops.registration`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.contmix import reference
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.precision import compute_dtype, without_autocast
from overlock_mm.ops.registration import Operator, define, gradients_of_definition

_CONTMIX = (
    'Tensor query, Tensor key, Tensor value, Tensor proj_weight, Tensor proj_bias, Tensor rpb'
)
_SIZES = 'int kernel_size, float scale, str? backend'

Functions = Mapping[str, Callable[..., Any]]


def _contmix(functions: Functions, *flat: Any) -> tuple[Tensor, Tensor]:
    arguments = ContMixArguments._make(flat)
    if arguments.value.numel() == 0:
        return _contmix_fake(*flat)
    return functions['contmix_forward'](arguments)


def _contmix_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, groups, _, height, width = value.shape
    logsumexp = value.new_empty((batch, groups, height, width), dtype=compute_dtype(value.dtype))
    return torch.empty_like(value), logsumexp


def _contmix_definition(*flat: Any) -> tuple[Tensor, None]:
    return reference.contmix(*flat), None


def _contmix_backward(grad_out: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    tensors, (out, logsumexp, *sizes, backend) = flat[:6], flat[6:]
    arguments = ContMixArguments._make((*tensors, *sizes))
    functions = BACKENDS.select(Call.contmix(*arguments, gradient=True), backend).functions
    if out.numel() == 0:
        return tuple(torch.zeros_like(x) for x in tensors)
    return tuple(functions['contmix_backward'](grad_out, arguments, out, logsumexp))


def _contmix_backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    query, _, value, *_ = args
    return tuple(
        torch.empty_like(x) if x is query or x is value else x.new_empty(x.shape) for x in args[:6]
    )


def _aggregate(functions: Functions, weight: Tensor, value: Tensor, *sizes: int) -> Tensor:
    if value.numel() == 0:
        return torch.empty_like(value)
    return functions['neighborhood_aggregate_forward'](weight, value, *sizes)


def _aggregate_fake(weight: Tensor, value: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(value)


def _aggregate_backward(
    grad_out: Tensor,
    weight: Tensor,
    value: Tensor,
    kernel_size: int,
    dilation: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    arguments = (weight, value, kernel_size, dilation)
    call = Call.neighborhood_aggregate(*arguments, gradient=True)
    functions = BACKENDS.select(call, backend).functions
    if value.numel() == 0:
        return torch.zeros_like(weight), torch.zeros_like(value)
    return functions['neighborhood_aggregate_backward'](grad_out, *arguments)


def _aggregate_backward_fake(
    grad_out: Tensor, weight: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(value)


CONTMIX = Operator(
    'contmix',
    f'({_CONTMIX}, {_SIZES}) -> (Tensor, Tensor)',
    BACKENDS,
    Call.contmix,
    _contmix,
    _contmix_fake,
    _contmix_definition,
)
NEIGHBORHOOD_AGGREGATE = Operator(
    'neighborhood_aggregate',
    '(Tensor weight, Tensor value, int kernel_size, int dilation, str? backend) -> Tensor',
    BACKENDS,
    Call.neighborhood_aggregate,
    _aggregate,
    _aggregate_fake,
    reference.neighborhood_aggregate,
)
CONTMIX_BACKWARD = define(
    'contmix_backward',
    f'(Tensor grad_out, {_CONTMIX}, Tensor out, Tensor logsumexp, {_SIZES}) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
    without_autocast(_contmix_backward),
    _contmix_backward_fake,
)
NEIGHBORHOOD_AGGREGATE_BACKWARD = define(
    'neighborhood_aggregate_backward',
    '(Tensor grad_out, Tensor weight, Tensor value, int kernel_size, int dilation, '
    'str? backend) -> (Tensor, Tensor)',
    without_autocast(_aggregate_backward),
    _aggregate_backward_fake,
)


def _save_contmix(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *flat, ctx.backend = inputs
    arguments = ContMixArguments._make(flat)
    ctx.sizes = (arguments.kernel_size, arguments.scale)
    ctx.save_for_backward(*arguments.tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _contmix_gradients(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 9
    *tensors, out, logsumexp = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph
        needed = [i for i, needs in enumerate(ctx.needs_input_grad) if needs]
        arguments = (*tensors, *ctx.sizes)
        gradients = gradients_of_definition(reference.contmix, arguments, needed, [grad_out])
        return *gradients, None
    gradients = CONTMIX_BACKWARD(grad_out, *tensors, out, logsumexp, *ctx.sizes, ctx.backend)
    return *gradients, None, None, None


def _save_aggregate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, value, *ctx.sizes, ctx.backend = inputs
    ctx.save_for_backward(weight, value)


def _aggregate_gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (*ctx.saved_tensors, *ctx.sizes)
    if torch.is_grad_enabled():  # create_graph
        needed = [i for i, needs in enumerate(ctx.needs_input_grad) if needs]
        definition = reference.neighborhood_aggregate
        return *gradients_of_definition(definition, arguments, needed, [grad_out]), None
    gradients = NEIGHBORHOOD_AGGREGATE_BACKWARD(grad_out, *arguments, ctx.backend)
    return *gradients, None, None, None


def _no_gradient(ctx: Any, *_: Any) -> None:
    # Without a formula PyTorch would warn and return wrong numbers.
    raise RuntimeError(
        'The operators contmix_backward and neighborhood_aggregate_backward of '
        'torch.ops.overlock_mm have no derivative. Remedy: differentiate '
        'overlock_mm.ops.contmix with create_graph=True.'
    )


CONTMIX.register_autograd(_contmix_gradients, _save_contmix)
NEIGHBORHOOD_AGGREGATE.register_autograd(_aggregate_gradients, _save_aggregate)
for _name in ('contmix_backward', 'neighborhood_aggregate_backward'):
    torch.library.register_autograd(f'overlock_mm::{_name}', _no_gradient)
