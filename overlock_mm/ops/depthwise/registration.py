"""Registration of the depthwise operators with torch: schemas, fakes and gradients.

See :mod:`overlock_mm.ops.registration`. The convolution without the element-wise work around it
has gradients by the backends: that of the input is a convolution with the kernel reversed, that of
the weight the private operator ``depthwise_conv2d_weight_grad``. All others are those of the
definition.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.depthwise import reference
from overlock_mm.ops.depthwise.backends import BACKENDS, Call, convert_parameters
from overlock_mm.ops.precision import compute_dtype, without_autocast
from overlock_mm.ops.registration import Operator, define, gradients_of_definition


def _map(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _two_maps(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map(x), _map(x)


def _map_and_stat(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map(x), x.new_empty(x.shape[:2], dtype=compute_dtype(x.dtype))


def _describe(name: str, x: Tensor, weight: Tensor, *rest: Any, transformed: bool = False) -> Call:
    return Call(
        name,
        x.device,
        x.dtype,
        transformed=transformed,
        kernel_size=weight.shape[-1],
        elements=x.numel(),
        dilation=rest[-1] if name == 'depthwise_conv2d' else 1,
    )


def _operator(
    definition: Callable[..., Any], arguments: str, results: str, fake: Callable[..., Any]
) -> Operator:
    name = definition.__name__

    def run(functions: Mapping[str, Callable[..., Any]], x: Tensor, *args: Any) -> Any:
        return functions[name](x, *args) if x.numel() > 0 else fake(x)

    def defined(*args: Any) -> Any:
        return definition(*convert_parameters(*args))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.positions = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.arguments = [None if isinstance(x, Tensor) else x for x in inputs[:-1]]
        ctx.save_for_backward(*(inputs[i] for i in ctx.positions))
        ctx.backend = inputs[-1]

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.arguments)
        for i, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            saved[i] = tensor
        needed = [i for i in ctx.positions if ctx.needs_input_grad[i]]
        if name == 'depthwise_conv2d' and not torch.is_grad_enabled() and _is_plain(*saved):
            return *_gradients(needed, *gradients, *saved, ctx.backend), None
        return *gradients_of_definition(defined, saved, needed, gradients), None

    schema = f'({arguments}, str? backend) -> {results}'
    operator = Operator(name, schema, BACKENDS, partial(_describe, name), run, fake, defined)
    operator.register_autograd(backward, save)
    return operator


def _is_plain(*arguments: Any) -> bool:
    _x, _weight, _bias, input_bias, _addend, gelu_input, gelu_output, _dilation = arguments
    return input_bias is None and not gelu_input and not gelu_output


def _gradients(
    needed: list[int],
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> list[Tensor | None]:
    """Return a gradient for each of the eight arguments, None where it is not needed."""
    *_, dilation, backend = rest
    gradients: list[Tensor | None] = [None] * 8
    if 0 in needed:
        reversed_weight = weight.flip((2, 3))
        gradients[0] = DEPTHWISE_CONV2D.call(
            grad_out, reversed_weight, None, None, None, False, False, dilation, backend
        )
    if 1 in needed:
        gradients[1] = DEPTHWISE_CONV2D_WEIGHT_GRAD(
            grad_out, x, weight.shape[-1], dilation, backend
        ).to(weight.dtype)
    if 2 in needed:
        assert bias is not None
        gradients[2] = grad_out.sum((0, 2, 3), dtype=compute_dtype(x.dtype)).to(bias.dtype)
    if 4 in needed:
        gradients[4] = grad_out  # of the addend
    return gradients


def _weight_grad(
    grad_out: Tensor, x: Tensor, kernel_size: int, dilation: int, backend: str | None
) -> Tensor:
    call = Call(
        'depthwise_conv2d',
        x.device,
        x.dtype,
        kernel_size=kernel_size,
        elements=x.numel(),
        dilation=dilation,
        gradient=True,
    )
    functions = BACKENDS.select(call, backend).functions
    if x.numel() == 0:
        return _weight_grad_fake(grad_out, x, kernel_size).zero_()
    return functions['depthwise_conv2d_weight_grad'](grad_out, x, kernel_size, dilation)


def _weight_grad_fake(grad_out: Tensor, x: Tensor, kernel_size: int, *_: Any) -> Tensor:
    shape = (x.shape[1], 1, kernel_size, kernel_size)
    return x.new_empty(shape, dtype=compute_dtype(x.dtype))


def _no_gradient(ctx: Any, *_: Any) -> None:
    # Without a formula PyTorch would warn and return wrong numbers.
    raise RuntimeError(
        'torch.ops.overlock_mm.depthwise_conv2d_weight_grad has no derivative. Remedy: '
        'differentiate overlock_mm.ops.depthwise_conv2d with create_graph=True.'
    )


DEPTHWISE_CONV2D_WEIGHT_GRAD = define(
    'depthwise_conv2d_weight_grad',
    '(Tensor grad_out, Tensor x, int kernel_size, int dilation, str? backend) -> Tensor',
    without_autocast(_weight_grad),
    _weight_grad_fake,
)
torch.library.register_autograd('overlock_mm::depthwise_conv2d_weight_grad', _no_gradient)

_CONVOLUTION = 'Tensor x, Tensor weight, Tensor? bias'
_AROUND = 'Tensor? input_bias, Tensor? addend, bool gelu_input'

DEPTHWISE_CONV2D = _operator(
    reference.depthwise_conv2d,
    f'{_CONVOLUTION}, {_AROUND}, bool gelu_output, int dilation',
    'Tensor',
    _map,
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
