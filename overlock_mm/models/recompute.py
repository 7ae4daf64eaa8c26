"""Gradient checkpointing that leaves batch-norm statistics as they would be without it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def unchanged_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let training-mode batch norms run once more without updating their statistics."""
    saved = []
    # A set, because a norm may be given beside the module that holds it.
    for norm in {m for module in modules for m in module.modules()}:
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
            count = norm.num_batches_tracked
            saved.append((norm, norm.momentum, count))
            norm.momentum = 0.0
            # A counter to be thrown away, whatever it counts from.
            norm.num_batches_tracked = None if count is None else torch.empty_like(count)
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum, norm.num_batches_tracked = momentum, count


class RecomputableBlock(nn.Module):
    """A block whose intermediate results can be recomputed in the backward pass.

    Subclasses define ``compute`` in place of ``forward``. With ``with_cp`` set,
    only the block's inputs are kept for the backward pass.
    """

    with_cp = False

    #: The block's mathematics, defined by the subclass.
    compute: Callable[..., Tensor]

    def forward(self, *args: Tensor) -> Tensor:
        if not (self.with_cp and torch.is_grad_enabled()):
            return self.compute(*args)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), unchanged_statistics([self])

        return checkpoint(self.compute, *args, use_reentrant=False, context_fn=contexts)
