"""The contract of a backend of ContMix and of the aggregation.

A backend is a module that registers four functions, which know nothing of autograd::

    contmix_forward(arguments) -> (out, logsumexp [B, G, H, W])
    contmix_backward(grad_out, arguments, out, logsumexp)
        -> one gradient for each of the six tensors, in its shape and dtype
    neighborhood_aggregate_forward(weight, value, kernel_size, dilation) -> out
    neighborhood_aggregate_backward(grad_out, weight, value, kernel_size, dilation)
        -> (d_weight, d_value)

and ``why_not(call)``: see :mod:`overlock_mm.ops.selection`. ``arguments`` are
:class:`ContMixArguments`. They are validated and not empty, with any strides. Outputs and
gradients of query, value and weight have the strides that ``torch.empty_like`` gives them, the
others are contiguous.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from overlock_mm.ops import selection
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.self_test import problem
from overlock_mm.ops.selection import Backends


@dataclass(frozen=True)
class Call(selection.Call):
    """The properties of a call that decide whether a backend can run it.

    Attributes:
        kernel_size: K.
        dilation: 1 for contmix.
        channels: C, channels of a group's values.
        query_channels: Cq; 0 for neighborhood_aggregate.
        regions: S; 0 for neighborhood_aggregate.
        gradient: Whether the backward function is requested.
    """

    kernel_size: int
    dilation: int = 1
    channels: int = 16
    query_channels: int = 0
    regions: int = 0
    gradient: bool = False

    @classmethod
    def contmix(
        cls,
        *arguments: Tensor | int | float,
        transformed: bool = False,
        gradient: bool = False,
    ) -> 'Call':
        """Describe a call with :class:`ContMixArguments`."""
        query, key, value, *_, kernel_size, _ = ContMixArguments(*arguments)  # type: ignore[arg-type]
        return cls(
            op='contmix',
            device=value.device,
            dtype=value.dtype,
            transformed=transformed,
            kernel_size=kernel_size,
            channels=value.shape[2],
            query_channels=query.shape[2],
            regions=key.shape[3],
            gradient=gradient,
            elements=value.numel(),
        )

    @classmethod
    def neighborhood_aggregate(
        cls,
        weight: Tensor,
        value: Tensor,
        kernel_size: int,
        dilation: int = 1,
        *,
        transformed: bool = False,
        gradient: bool = False,
    ) -> 'Call':
        """Describe ``neighborhood_aggregate(weight, value, kernel_size, dilation)``."""
        return cls(
            op='neighborhood_aggregate',
            device=value.device,
            dtype=value.dtype,
            transformed=transformed,
            kernel_size=kernel_size,
            dilation=dilation,
            channels=value.shape[-1],
            gradient=gradient,
            elements=value.numel(),
        )

    @classmethod
    def typical(cls, op: str) -> 'Call':
        """Describe the call that stage 3 of variant T makes, on the GPU if there is one."""
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        if op == 'contmix':
            return cls(op, device, torch.float32, 13, query_channels=16, regions=49)
        return cls(op, device, torch.float32, 13)


BACKENDS = Backends(
    'contmix',
    operators=('contmix', 'neighborhood_aggregate'),
    functions=(
        'contmix_forward',
        'contmix_backward',
        'neighborhood_aggregate_forward',
        'neighborhood_aggregate_backward',
    ),
    call_type=Call,
    reference_is_slow=True,
    problem=problem,
)
