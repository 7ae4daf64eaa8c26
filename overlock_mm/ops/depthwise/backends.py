"""Which implementations there are, and what they must know of a call.

A backend is a module with three functions that know nothing of autograd::

    depthwise_conv2d(x, weight, bias, input_bias, addend, gelu_input, gelu_output) -> y
    depthwise_conv2d_norm(x, weight, bias, norm_weight, norm_bias, eps, skip_weight, skip_bias)
        -> (y, normed)
    depthwise_conv2d_stats(x, weight, bias, input_bias, addend, gelu_input, stat) -> (y, [B, C])

and ``why_not(call)``, as in :mod:`overlock_mm.ops.contmix.backends`. Arguments are validated
and not empty, parameters have the dtype of the activations; strides are any.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

#: Name of a backend -> its module, in the order of automatic choice. The CPU's comes first, as
#: its calls are so short that asking the others would show.
BACKENDS: Mapping[str, str] = {
    'cpu': 'overlock_mm.ops.depthwise.cpu_backend',
    'cuda': 'overlock_mm.ops.depthwise.cuda_backend',
    'triton': 'overlock_mm.ops.depthwise.triton_backend',
    'reference': 'overlock_mm.ops.depthwise.reference',
}


@dataclass(frozen=True)
class Call:
    """What a backend must know of a call to say whether it can run it.

    Attributes:
        op: Name of the operator.
        device: Of all tensors.
        dtype: Of the activations.
    """

    backends: ClassVar[Mapping[str, str]] = BACKENDS
    reference_is_slow: ClassVar[bool] = False

    op: str
    device: torch.device
    dtype: torch.dtype
