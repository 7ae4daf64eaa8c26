"""The contract of a backend of the depthwise operators.

A backend is a module that registers four functions, which know nothing of autograd::

    depthwise_conv2d(x, weight, bias, input_bias, addend, gelu_input, gelu_output, dilation) -> y
    depthwise_conv2d_weight_grad(grad_out, x, kernel_size, dilation) -> [C, 1, k, k]
    depthwise_conv2d_norm(x, weight, bias, norm_weight, norm_bias, eps, skip_weight, skip_bias)
        -> (y, normed)
    depthwise_conv2d_stats(x, weight, bias, input_bias, addend, gelu_input, stat) -> (y, [B, C])

and ``why_not(call)``: see :mod:`overlock_mm.ops.selection`. Arguments are validated and not empty,
with any strides. The dtype of the parameters may differ from that of the activations: a backend
computes with them as they are, or converts them as :func:`with_converted_parameters` does. Maps are
returned in channels_last memory, the gradient of the weight contiguous and in the dtype of
accumulation.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from overlock_mm.ops.depthwise.call import Call
from overlock_mm.ops.depthwise.self_test import problem
from overlock_mm.ops.selection import Backends

__all__ = ['BACKENDS', 'Call', 'convert_parameters', 'with_converted_parameters']


def convert_parameters(x: Tensor, *args: Any) -> list[Any]:
    """Return an operator's arguments, with parameters in the dtype of the activations."""
    dtype = x.dtype
    return [
        x,
        *(arg.to(dtype) if isinstance(arg, Tensor) and arg.dtype != dtype else arg for arg in args),
    ]


def with_converted_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backend's function that needs its parameters in the dtype of the activations."""

    @wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*convert_parameters(*args))

    return wrapper


_OPERATORS = ('depthwise_conv2d', 'depthwise_conv2d_norm', 'depthwise_conv2d_stats')

BACKENDS = Backends(
    'depthwise',
    operators=_OPERATORS,
    functions=(*_OPERATORS, 'depthwise_conv2d_weight_grad'),
    call_type=Call,
    problem=problem,
)
