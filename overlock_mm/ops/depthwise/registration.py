"""Registration of the depthwise operators with torch: schemas, fakes and gradients.

See :mod:`overlock_mm.ops.registration`. Their gradient is that of the definition.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.depthwise import reference
from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from overlock_mm.ops.precision import compute_dtype
from overlock_mm.ops.registration import Operator, gradients_of_definition


def _map(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _two_maps(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map(x), _map(x)


def _map_and_stat(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map(x), x.new_empty(x.shape[:2], dtype=compute_dtype(x.dtype))


def _as_activations(x: Tensor, *args: Any) -> list[Any]:
    """Return a backend's arguments, with parameters in the dtype of the activations."""
    dtype = x.dtype
    return [
        x,
        *(arg.to(dtype) if isinstance(arg, Tensor) and arg.dtype != dtype else arg for arg in args),
    ]


def _describe(name: str, x: Tensor, weight: Tensor, *_: Any, transformed: bool = False) -> Call:
    return Call(
        name,
        x.device,
        x.dtype,
        transformed=transformed,
        kernel_size=weight.shape[-1],
        elements=x.numel(),
    )


def _operator(
    definition: Callable[..., Any], arguments: str, results: str, fake: Callable[..., Any]
) -> Operator:
    name = definition.__name__

    def run(functions: Mapping[str, Callable[..., Any]], x: Tensor, *args: Any) -> Any:
        return functions[name](*_as_activations(x, *args)) if x.numel() > 0 else fake(x)

    def defined(*args: Any) -> Any:
        return definition(*_as_activations(*args))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.positions = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.arguments = [None if isinstance(x, Tensor) else x for x in inputs[:-1]]
        ctx.save_for_backward(*(inputs[i] for i in ctx.positions))

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.arguments)
        for i, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            saved[i] = tensor
        needed = [i for i in ctx.positions if ctx.needs_input_grad[i]]
        return *gradients_of_definition(defined, saved, needed, gradients), None

    schema = f'({arguments}, str? backend) -> {results}'
    operator = Operator(name, schema, BACKENDS, partial(_describe, name), run, fake, defined)
    torch.library.register_autograd(f'overlock_mm::{name}', backward, setup_context=save)
    return operator


_CONVOLUTION = 'Tensor x, Tensor weight, Tensor? bias'
_AROUND = 'Tensor? input_bias, Tensor? addend, bool gelu_input'

DEPTHWISE_CONV2D = _operator(
    reference.depthwise_conv2d, f'{_CONVOLUTION}, {_AROUND}, bool gelu_output', 'Tensor', _map
)
DEPTHWISE_CONV2D_NORM = _operator(
    reference.depthwise_conv2d_norm,
    f'{_CONVOLUTION}, Tensor norm_weight, Tensor norm_bias, float eps, Tensor? skip_weight, '
    'Tensor? skip_bias',
    '(Tensor, Tensor)',
    _two_maps,
)
DEPTHWISE_CONV2D_STATS = _operator(
    reference.depthwise_conv2d_stats,
    f'{_CONVOLUTION}, {_AROUND}, str stat',
    '(Tensor, Tensor)',
    _map_and_stat,
)
