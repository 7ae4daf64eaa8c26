"""How a call of a public function reaches a backend: directly or through torch's dispatcher."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

_PLAIN = (Tensor, torch.nn.Parameter)

P = ParamSpec('P')
R = TypeVar('R')


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take part in torch's override protocol, as torch's own functions do.

    A ``torch.overrides.TorchFunctionMode`` and tensors with ``__torch_function__`` see calls of
    the function and may replace it: so the ONNX exporter puts its own formulations in its place.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        relevant = (*args, *kwargs.values())
        if has_torch_function(relevant):
            return handle_torch_function(wrapper, relevant, *args, **kwargs)
        return function(*args, **kwargs)

    return wrapper


def constant_when_traced(function: Callable[P, bool]) -> Callable[P, bool]:
    """Mark a function as ``torch.compiler.assume_constant_result`` does.

    That one imports the compiler, which takes two seconds, for everyone who imports this package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def is_exporting() -> bool:
    """Return whether the graph that is compiled is an export, for programs without this package.

    torch before 2.7 does not say what the graph is for; every graph is an export there.
    """
    return getattr(torch.compiler, 'is_exporting', lambda: True)()


def bypasses_dispatcher(arguments: Sequence[Any]) -> bool:
    """Return whether a backend may be called directly: nothing differentiates or intercepts it."""
    return not is_intercepted(arguments) and not is_differentiated(arguments)


def is_intercepted(arguments: Sequence[Any]) -> bool:
    """Return whether a tracer, mode, transform or tensor of another class must see the operator.

    A network calls the operators of this package a hundred times per image, on maps that take some
    ten microseconds; the dispatcher's way through Python takes more.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0:
        return True
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return any(isinstance(x, Tensor) and type(x) not in _PLAIN for x in arguments)


def is_differentiated(arguments: Sequence[Any]) -> bool:
    """Return whether autograd records a call."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in arguments
    )


def is_transformed(arguments: Sequence[Any]) -> bool:
    """Return whether ``torch.func.grad`` or a forward-mode derivative reaches a call.

    The operators have neither, as a ``torch.library`` operator cannot; their definitions have.
    ``torch.vmap`` by itself does not count: torch takes the operators apart for it.
    """
    if torch._C._are_functorch_transforms_active():
        kinds = torch._C._functorch.TransformType
        levels = torch._C._functorch.get_interpreter_stack() or []
        return any(level.key() in (kinds.Grad, kinds.Jvp) for level in levels)
    return has_tangent(arguments)


def has_tangent(arguments: Sequence[Any]) -> bool:
    """Return whether an argument carries a tangent of forward-mode differentiation."""
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None for x in arguments if isinstance(x, Tensor)
    )
