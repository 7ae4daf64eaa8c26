"""Training with less memory by recomputing cheap operations in the backward pass.

Autograd keeps the input of every operation whose gradient needs it. A block of this network has
many cheap operations (norms, GELU, gates, small depthwise convolutions) between a few costly ones,
and each would keep a map. A ``forward`` under :func:`recompute_in_backward` keeps its arguments and
the results of the costly operations, those under :func:`keep_results_of`, and computes the rest
once more when the backward pass reaches the block.

``torch.utils.checkpoint`` with a policy (``create_selective_checkpoint_contexts``) has the same
idea. Its dispatch modes see every operation of a block twice, which takes more time
(docs/training_memory.md has both), and it refuses a second backward pass through a retained graph.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import get_device_states, set_device_states

#: What may be computed again in the backward pass: nothing, all but the results of costly
#: operations, or whole blocks.
RECOMPUTE = ('none', 'cheap', 'blocks')


class RecomputableBlock(nn.Module):
    """Base of the blocks, whose ``forward`` is under :func:`recompute_in_backward`."""

    #: One of :data:`RECOMPUTE`.
    recompute = 'cheap'


def recompute_in_backward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a ``forward`` so that it keeps what its module's attribute ``recompute`` says.

    Outputs, gradients and the statistics of batch norms are those of the plain method, to the last
    bit, whatever is random in it. In evaluation and without gradients the method just runs. So it
    does under torch.compile, whose partitioner decides by itself what to keep.

    The method takes tensors by position. Modules called in it run twice in training, and so do
    their hooks.

    Raises:
        RuntimeError: In the backward pass, if the second run differs from the first.
    """

    @wraps(forward)
    def wrapper(module: nn.Module, *args: Tensor) -> Any:
        if (
            torch.compiler.is_compiling()
            or module.recompute == 'none'
            or not module.training
            or not torch.is_grad_enabled()
        ):
            return forward(module, *args)
        return _Recomputation(partial(forward, module), module, args).first_run(args)

    return wrapper


def keep_results_of(operator: torch._ops.OpOverload) -> AbstractContextManager[Any]:
    """Under :func:`recompute_in_backward`, keep the results of an operator that is called here.

    The backward pass takes the kept results instead of calling it once more. Elsewhere this does
    nothing.
    """
    make_mode = None if torch.compiler.is_compiling() else _kept_results.get()
    return nullcontext() if make_mode is None else make_mode(operator)


class KeptConv2d(nn.Conv2d):
    """A convolution too costly to compute again: see :func:`keep_results_of`."""

    def forward(self, x: Tensor) -> Tensor:
        with keep_results_of(torch.ops.aten.convolution.default):
            return super().forward(x)


#: Makes the mode for an operator whose results the current run keeps.
_kept_results: ContextVar[Callable[[torch._ops.OpOverload], TorchDispatchMode] | None] = ContextVar(
    'kept_results', default=None
)


class _Keep(TorchDispatchMode):
    """Adds the results of an operator to a list."""

    def __init__(self, results: list[Tensor], operator: torch._ops.OpOverload) -> None:
        super().__init__()
        self.results = results
        self.operator = operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is self.operator:
            # Not the tensors themselves, which would keep the graph that leads to them.
            parts = result if isinstance(result, tuple) else (result,)
            self.results.extend(x.detach() for x in parts)
        return result


class _Recall(TorchDispatchMode):
    """Takes the results of an operator from an iterator instead of computing them."""

    def __init__(self, results: Iterator[Tensor], operator: torch._ops.OpOverload) -> None:
        super().__init__()
        self.results = results
        self.operator = operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not self.operator:
            return func(*args, **(kwargs or {}))
        parts = tuple(next(self.results).detach() for _ in func._schema.returns)
        return parts if len(parts) > 1 else parts[0]


@contextmanager
def _keeping(make_mode: Callable[..., TorchDispatchMode] | None) -> Iterator[None]:
    token = _kept_results.set(make_mode)
    try:
        yield
    finally:
        _kept_results.reset(token)


class _AllRecalled(Exception):
    """Raised when the last tensor that the backward pass needs has been recomputed."""


class _KeptTensors(torch.autograd.Function):
    """A node outside the graph, so that autograd keeps these tensors as it keeps all others."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        raise AssertionError('No gradient reaches this node.')


_ANCHOR = torch.empty(0, requires_grad=True)


class _Recomputation:
    """Replaces the tensors that autograd would keep of one run of a function."""

    def __init__(
        self, function: Callable[..., Any], module: nn.Module, args: tuple[Tensor, ...]
    ) -> None:
        self.function = function
        self.module = module
        self.number_of_args = len(args)
        self.keep_results = module.recompute == 'cheap'
        self.autocast = _autocast_state(args[0].device.type)
        self.random_state = _random_state(args)
        self.shapes: list[torch.Size] = []
        self.recalled: dict[int, Tensor] = {}

    def first_run(self, args: tuple[Tensor, ...]) -> Any:
        """Run the function and return its outputs."""
        results: list[Tensor] = []
        mode = partial(_Keep, results) if self.keep_results else None
        with saved_tensors_hooks(self.forget, self.recall), _keeping(mode):
            outputs = self.function(*args)
        self.kept = _KeptTensors.apply(_ANCHOR, *args, *results)
        return outputs

    def forget(self, tensor: Tensor) -> int:
        """Replace a tensor by its number, in the order of the run."""
        self.shapes.append(tensor.shape)
        return len(self.shapes) - 1

    def recall(self, number: int) -> Tensor:
        """Return the tensor with that number."""
        if number not in self.recalled:
            self.run_again()
        return self.recalled.pop(number)

    def run_again(self) -> None:
        """Recompute the forgotten tensors, up to the last."""
        kept = self.kept.grad_fn.saved_tensors
        args, results = kept[: self.number_of_args], iter(kept[self.number_of_args :])
        args = tuple(x.detach().requires_grad_(x.requires_grad) for x in args)
        recalled: list[Tensor] = []

        def remember(tensor: Tensor) -> Tensor:
            recalled.append(tensor.detach())
            if len(recalled) == len(self.shapes):
                raise _AllRecalled
            # Not the tensor itself: one that an operation keeps of its own results would keep the
            # operation in turn, and neither would ever be freed.
            return recalled[-1]

        with (
            suppress(_AllRecalled),
            torch.enable_grad(),
            self.autocast(),
            self.random_state(),
            _unchanged_statistics(self.module),
            saved_tensors_hooks(remember, lambda tensor: tensor),
            _keeping(partial(_Recall, results) if self.keep_results else None),
        ):
            self.function(*args)
        if [tensor.shape for tensor in recalled] != self.shapes:
            raise RuntimeError(
                f'{type(self.module).__name__} kept other tensors when it ran again in the '
                f'backward pass ({len(recalled)}) than in the forward pass ({len(self.shapes)}). '
                "Remedy: change no module between the two, or set recompute='none'."
            )
        self.recalled = dict(enumerate(recalled))


def _autocast_state(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Returns a function that makes contexts with a device's current autocast state."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)


def _random_state(tensors: tuple[Tensor, ...]) -> Callable[[], AbstractContextManager[None]]:
    """Returns a function that makes contexts with the devices' current random states."""
    state = torch.get_rng_state()
    devices, states = get_device_states(*tensors)

    @contextmanager
    def repeated() -> Iterator[None]:
        with torch.random.fork_rng(devices):
            torch.set_rng_state(state)
            set_device_states(devices, states)
            yield

    return repeated


@contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Let training-mode batch norms run once more without updating their statistics."""
    saved = []
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
            count = norm.num_batches_tracked
            saved.append((norm, norm.momentum, count))
            norm.momentum = 0.0
            # This counter is discarded, regardless of where it starts.
            norm.num_batches_tracked = None if count is None else torch.empty_like(count)
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum, norm.num_batches_tracked = momentum, count
