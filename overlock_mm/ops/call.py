"""The properties of a call by which its backend is chosen."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Call:
    """What selection needs of a call. Families add the properties that their backends need.

    Attributes:
        op: Name of the operator.
        device: Device of all tensors.
        dtype: Data type of the activations.
        transformed: Whether ``torch.func.grad`` or a forward-mode derivative reaches the call,
            which only the definition can serve.
        kernel_size: Side of the window, or 0 where it is unknown.
        elements: Number of elements of the map; 0 if unknown. Calls that only differ in it are
            equal.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    transformed: bool = field(default=False, kw_only=True)
    kernel_size: int = field(default=0, kw_only=True)
    elements: int = field(default=0, kw_only=True, compare=False)

    @classmethod
    def typical(cls, op: str) -> 'Call':
        """Describe a float32 call, on the GPU if there is one."""
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        return cls(op, device, torch.float32)
