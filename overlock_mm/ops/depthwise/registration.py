"""The operators as torch knows them: schemas, fakes and autograd, once for all backends.

As for ContMix a call selects its backend when it runs. Arguments are checked before, by
:mod:`overlock_mm.ops.depthwise.api`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.contmix.backends import select_backend
from overlock_mm.ops.contmix.reference import compute_dtype
from overlock_mm.ops.contmix.registration import nobody_watches, without_autocast
from overlock_mm.ops.depthwise import reference
from overlock_mm.ops.depthwise.backends import Call

_SCHEMAS = {
    'depthwise_conv2d': (
        '(Tensor x, Tensor weight, Tensor? bias, Tensor? input_bias, Tensor? addend, '
        'bool gelu_input, bool gelu_output, str? backend) -> Tensor'
    ),
    'depthwise_conv2d_norm': (
        '(Tensor x, Tensor weight, Tensor? bias, Tensor norm_weight, Tensor norm_bias, '
        'float eps, Tensor? skip_weight, Tensor? skip_bias, str? backend) -> (Tensor, Tensor)'
    ),
    'depthwise_conv2d_stats': (
        '(Tensor x, Tensor weight, Tensor? bias, Tensor? input_bias, Tensor? addend, '
        'bool gelu_input, str stat, str? backend) -> (Tensor, Tensor)'
    ),
}


def call(name: str, *arguments: Any) -> Any:
    """Call an operator, or at once its backend where nobody watches."""
    *args, backend = arguments
    if nobody_watches(args):
        module = select_backend(Call(name, args[0].device, args[0].dtype), backend)
        if module is not reference and args[0].numel() > 0:
            return getattr(module, name)(*_as_activations(*args))
    return getattr(torch.ops.overlock_mm, name)(*arguments)


def _map_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _channels_last(y: Tensor) -> Tensor:
    """The map in channels_last memory, with its strides also where an axis has one entry."""
    wanted = torch.empty_like(y, device='meta', memory_format=torch.channels_last)
    return y if y.stride() == wanted.stride() else _map_like(y).copy_(y)


def _channel_stat(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=compute_dtype(x.dtype))


def _fake(x: Tensor, *_: Any) -> Tensor:
    return _map_like(x)


def _norm_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map_like(x), _map_like(x)


def _stats_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map_like(x), _channel_stat(x)


def _as_activations(x: Tensor, *args: Any) -> list[Any]:
    """The arguments of a backend, whose parameters have the dtype of the activations."""
    dtype = x.dtype
    return [
        x,
        *(arg.to(dtype) if isinstance(arg, Tensor) and arg.dtype != dtype else arg for arg in args),
    ]


def _register(name: str, fake: Callable) -> None:
    qualified = f'overlock_mm::{name}'

    def run(x: Tensor, *arguments: Any) -> Any:
        *args, backend = arguments
        module = select_backend(Call(name, x.device, x.dtype), backend)
        if x.numel() == 0:
            return fake(x)
        results = getattr(module, name)(*_as_activations(x, *args))
        if isinstance(results, Tensor):
            return _channels_last(results)
        return tuple(_channels_last(y) if y.dim() == 4 else y for y in results)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.positions = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.arguments = [None if isinstance(x, Tensor) else x for x in inputs[:-1]]
        ctx.save_for_backward(*(inputs[i] for i in ctx.positions))

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = [i for i in ctx.positions if ctx.needs_input_grad[i]]
        arguments = list(ctx.arguments)
        with torch.enable_grad():
            for i, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
                # An alias, so that no gradient takes the way by which one argument was
                # computed from another.
                arguments[i] = tensor.view_as(tensor)
            results = getattr(reference, name)(*_as_activations(*arguments))
        found = torch.autograd.grad(
            results,
            [arguments[i] for i in needed],
            gradients,
            create_graph=torch.is_grad_enabled(),
        )
        by_position = dict(zip(needed, found, strict=True))
        return *(by_position.get(i) for i in range(len(arguments))), None

    torch.library.define(qualified, _SCHEMAS[name], tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, 'CompositeExplicitAutograd', without_autocast(run))
    torch.library.register_fake(qualified, fake)
    torch.library.register_autograd(qualified, backward, setup_context=save)


_register('depthwise_conv2d', _fake)
_register('depthwise_conv2d_norm', _norm_fake)
_register('depthwise_conv2d_stats', _stats_fake)
