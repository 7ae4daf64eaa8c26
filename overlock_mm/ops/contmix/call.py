"""The properties of a call of ContMix or of the aggregation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overlock_mm.ops import call
from overlock_mm.ops.contmix.arguments import ContMixArguments


@dataclass(frozen=True)
class Call(call.Call):
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
