"""Training with less memory: cheap results are computed again in the backward pass.

Autograd keeps the input of every operation whose gradient needs it. Between two convolutions of
this network lie chains of cheap operations (norms, GELU, gates), and each would keep a map.
:func:`lean` keeps the first of them and has the others again when they are needed.

torch.utils.checkpoint, with ``use_reentrant=False``, would do the same with twice the overhead
for each chain, 0.4 ms instead of 0.2, and a step of OverLoCK-T has 149 of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from overlock_mm.models.recompute import unchanged_statistics


def lean(x: Tensor | tuple[Tensor, ...], *steps: Callable[..., Any]) -> Any:
    """Take ``steps`` one after the other, and keep only ``x`` for the backward pass.

    Made for chains of cheap steps that end in a convolution. The backward pass runs the chain
    again up to the last tensor that it needs: the input of that convolution, which is therefore
    not computed a second time. Outputs, gradients and the statistics of batch norms are those of
    the plain steps, to the last bit.

    In evaluation, and without gradients, the steps just run. So they do under torch.compile, whose
    partitioner decides by itself what to keep and what to compute again.

    Args:
        x: Arguments of the first step; each further one takes the result of that before.
        steps: Modules, methods of modules, or functions; none of them random. The last is a
            module or a method of one, and says whether this is training.

    Raises:
        RuntimeError: In the backward pass, if it should itself be differentiable.

    Example:
        >>> norm, conv = nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1)
        >>> lean(torch.rand(2, 8, 7, 7), norm, torch.nn.functional.gelu, conv).shape
        torch.Size([2, 16, 7, 7])
    """
    inputs = x if isinstance(x, tuple) else (x,)
    if torch.compiler.is_compiling():  # first, as it does not trace the owner of a method
        return _run(steps, inputs)
    owners = [getattr(step, '__self__', step) for step in steps]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    if not _pays(modules[-1]):
        return _run(steps, inputs)
    chain = _Chain(steps, modules, inputs)
    with saved_tensors_hooks(chain.forget, chain.recall):
        return _run(steps, inputs)


def _pays(module: nn.Module) -> bool:
    return module.training and torch.is_grad_enabled()


def _run(steps: tuple[Callable[..., Any], ...], inputs: tuple[Tensor, ...]) -> Any:
    first, *others = steps
    result = first(*inputs)
    for step in others:
        result = step(result)
    return result


class _AllRecalled(Exception):
    """The last tensor that the backward pass needs has been computed again."""


class _KeptInputs(torch.autograd.Function):
    """A node outside the graph, so that autograd keeps the inputs as it keeps everything else."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        raise AssertionError('No gradient reaches this node.')


_ANCHOR = torch.empty(0, requires_grad=True)


class _Chain:
    """Stands in for the tensors that autograd would keep of one run of the steps."""

    def __init__(
        self,
        steps: tuple[Callable[..., Any], ...],
        modules: list[nn.Module],
        inputs: tuple[Tensor, ...],
    ) -> None:
        self.steps = steps
        self.modules = modules
        self.kept = _KeptInputs.apply(_ANCHOR, *inputs)
        self.autocast = _autocast_state(inputs[0].device.type)
        self.forgotten = 0
        self.recalled: dict[int, Tensor] = {}

    def forget(self, tensor: Tensor) -> int:
        """Take the place of a tensor: its number, in the order of the run."""
        self.forgotten += 1
        return self.forgotten - 1

    def recall(self, number: int) -> Tensor:
        """The tensor with that number."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                'The backward pass of this network cannot be differentiated in turn. Remedy: call '
                'it without create_graph=True, or put the network into evaluation mode.'
            )
        if number not in self.recalled:
            self._run_again()
        return self.recalled.pop(number)

    def _run_again(self) -> None:
        kept = self.kept.grad_fn.saved_tensors
        inputs = tuple(x.detach().requires_grad_(x.requires_grad) for x in kept)
        recalled: list[Tensor] = []

        def remember(tensor: Tensor) -> Tensor:
            recalled.append(tensor.detach())
            if len(recalled) == self.forgotten:
                raise _AllRecalled
            # Not the tensor itself: one that an operation keeps of its own results would keep the
            # operation in turn, and neither would ever be freed.
            return recalled[-1]

        with (
            suppress(_AllRecalled),
            torch.enable_grad(),
            self.autocast(),
            unchanged_statistics(self.modules),
            saved_tensors_hooks(remember, lambda tensor: tensor),
        ):
            _run(self.steps, inputs)
        if len(recalled) < self.forgotten:
            raise RuntimeError(
                f'The steps kept {self.forgotten} tensors in the forward pass, but {len(recalled)} '
                'when they ran again. Remedy: change no module between the two.'
            )
        self.recalled = dict(enumerate(recalled))


def _autocast_state(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which a device's autocast is as it is now."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)
