"""The functions of ``overlock_mm._C`` that the backends 'cpu' and 'cuda' share.

They have kernels per device, chosen by that of the tensors. Arguments and results are those
of :mod:`overlock_mm.ops.contmix.backends`.
"""

from typing import Any

import torch
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments


def contmix_forward(arguments: ContMixArguments) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp."""
    return torch.ops.overlock_mm_C.contmix_forward(*arguments)


def contmix_backward(
    grad_out: Tensor, arguments: ContMixArguments, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of the six tensors."""
    return torch.ops.overlock_mm_C.contmix_backward(
        grad_out, *arguments.tensors, out, logsumexp, arguments.kernel_size, arguments.scale
    )


def neighborhood_aggregate_forward(*args: Any) -> Tensor:
    """Return the output."""
    return torch.ops.overlock_mm_C.neighborhood_aggregate_forward(*args)


def neighborhood_aggregate_backward(*args: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and value."""
    return torch.ops.overlock_mm_C.neighborhood_aggregate_backward(*args)
