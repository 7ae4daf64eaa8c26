"""Registration with torch as ``torch.ops.overlock_mm``, once for all backends.

A call selects its backend when it runs, not when it is traced, so a compiled graph holds one
operator whatever backend serves it. Arguments have been checked before.

First derivatives are those of a backend or of the definition, second and higher ones those of the
definition. So are all derivatives by ``torch.func.grad`` and in forward mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.dispatch import (
    bypasses_dispatcher,
    has_tangent,
    is_differentiated,
    is_intercepted,
    is_transformed,
)
from overlock_mm.ops.precision import without_autocast
from overlock_mm.ops.selection import Backends, Call


class Operator:
    """An operator of this package.

    Args:
        name: Its name in ``torch.ops.overlock_mm``.
        schema: Arguments and results; the last argument is the backend.
        backends: The family's.
        describe: The call that has certain arguments, all but the backend.
        run: Runs a call, from the functions of a backend and the arguments.
        fake: Results of the right shape, dtype and strides with no values, from the arguments
            with the backend.
        definition: The results in plain PyTorch, from the arguments.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        backends: Backends,
        describe: Callable[..., Call],
        run: Callable[..., Any],
        fake: Callable[..., Any],
        definition: Callable[..., Any],
    ) -> None:
        self._backends = backends
        self._describe = describe
        self._definition = definition

        def select_and_run(*arguments: Any) -> Any:
            *args, backend = arguments
            if has_tangent(args):  # through torch.ops, past the definition
                raise RuntimeError(
                    f'torch.ops.overlock_mm.{name} has no forward-mode derivative. Remedy: call '
                    f'overlock_mm.ops.{name}.'
                )
            functions = backends.select(describe(*args), backend).functions
            return run(functions, *args)

        self.name = name
        self._run = without_autocast(select_and_run)
        define(name, schema, self._run, fake)

    def register_autograd(self, backward: Callable[..., Any], save: Callable[..., None]) -> None:
        """Define the gradient.

        Args:
            backward: Gradients of all arguments, from the context and the gradients of the results.
            save: Keeps in the context what ``backward`` needs: context, arguments, results.
        """
        torch.library.register_autograd(f'overlock_mm::{self.name}', backward, setup_context=save)

        def forward(ctx: Any, *arguments: Any) -> Any:
            results = self._run(*arguments)
            save(ctx, arguments, results)
            return results

        methods = {'forward': staticmethod(forward), 'backward': staticmethod(backward)}
        self._function: Any = type(self.name, (torch.autograd.Function,), methods)

    def __call__(self, *arguments: Any, backend: str | None) -> Any:
        """Call the operator, or its definition where only that has a derivative."""
        if not torch.compiler.is_compiling():
            # Computed here, so that the gradient uses it too.
            backend = self._backends.chosen(backend)
            if is_transformed(arguments):
                self._backends.select(self._describe(*arguments, transformed=True), backend)
                return self._definition(*arguments)
        return self.call(*arguments, backend)

    def call(self, *arguments: Any) -> Any:
        """Call the operator with all arguments, directly if nothing has to intercept the call."""
        if is_intercepted(arguments):
            return getattr(torch.ops.overlock_mm, self.name)(*arguments)
        if is_differentiated(arguments):
            return self._function.apply(*arguments)
        return self._run(*arguments)


def define(
    name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define ``torch.ops.overlock_mm.NAME`` for all devices, without a derivative.

    Returns:
        A function that calls it, or ``run`` directly if nothing has to intercept the call.
    """
    qualified = f'overlock_mm::{name}'
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, 'CompositeExplicitAutograd', run)
    torch.library.register_fake(qualified, fake)

    def call(*arguments: Any) -> Any:
        if bypasses_dispatcher(arguments):
            return run(*arguments)
        return getattr(torch.ops.overlock_mm, name)(*arguments)

    return call


def gradients_of_definition(
    definition: Callable[..., Any],
    arguments: Sequence[Any],
    needed: Sequence[int],
    grad_results: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Compute an operator's gradients by its definition, differentiable themselves if needed.

    Args:
        definition: The results in plain PyTorch.
        arguments: All arguments of the definition.
        needed: Positions of the arguments whose gradient is wanted.
        grad_results: Gradients of the results.

    Returns:
        A gradient for each argument, None where it is not needed.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that no gradient takes the way by which one argument was computed from
        # another.
        aliases = [x.view_as(x) if isinstance(x, Tensor) else x for x in arguments]
        results = definition(*aliases)
    results = results if isinstance(results, tuple) else (results,)
    pairs = [pair for pair in zip(results, grad_results, strict=True) if pair[1] is not None]
    gradients = torch.autograd.grad(
        [result for result, _ in pairs],
        [aliases[i] for i in needed],
        [gradient for _, gradient in pairs],
        create_graph=create_graph,
    )
    by_position = dict(zip(needed, gradients, strict=True))
    return [by_position.get(i) for i in range(len(arguments))]
