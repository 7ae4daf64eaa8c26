"""Gradient checkpointing that leaves batch-norm statistics as they would be without it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Let training-mode batch norms run once more without updating their statistics."""
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training and m.track_running_stats
    ]
    saved = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


class RecomputableBlock(nn.Module):
    """A block whose intermediate results can be recomputed in the backward pass.

    Subclasses define :meth:`compute` in place of ``forward``. With ``with_cp`` set,
    only the block's inputs are kept for the backward pass.
    """

    with_cp = False

    def compute(self, *args: Tensor) -> Tensor:
        """The block's mathematics."""
        raise TypeError(f'{type(self).__name__} must define compute().')

    def forward(self, *args: Tensor) -> Tensor:
        if not (self.with_cp and torch.is_grad_enabled()):
            return self.compute(*args)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _unchanged_statistics(self)

        return checkpoint(self.compute, *args, use_reentrant=False, context_fn=contexts)
