"""The small problem of :mod:`overlock_mm.ops.self_test` for ContMix and the aggregation."""

import torch
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.call import Call
from overlock_mm.ops.self_test import Functions, random_tensors

#: As many as in a network, whose strides are multiples of 16, too: Triton compiles for that.
GROUPS = 8


def problem(
    functions: Functions, call: Call, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """The call's operator on a map slightly larger than its window: the result, or gradients.

    Activations of ContMix have the memory layout that they have in a network.
    """
    random = random_tensors()

    def tensor(*shape: int) -> Tensor:
        return random(*shape).to(call.dtype).to(device, dtype)

    def activation(channels: int, *positions: int) -> Tensor:
        x = tensor(1, *positions, GROUPS, channels)
        return x.permute(0, -2, -1, *range(1, x.dim() - 2))

    k, extent = call.kernel_size, call.kernel_size * call.dilation
    height, width = extent + 1, extent + 2
    if call.op == 'neighborhood_aggregate':
        sizes = (k, call.dilation)
        value = tensor(1, GROUPS, height, width, call.channels)
        weight = tensor(1, GROUPS, height, width, k * k)
        if call.gradient:
            grad_out = tensor(*value.shape)
            return [*functions['neighborhood_aggregate_backward'](grad_out, weight, value, *sizes)]
        return [functions['neighborhood_aggregate_forward'](weight, value, *sizes)]
    arguments = ContMixArguments(
        query=activation(call.query_channels, height, width),
        key=activation(call.query_channels, call.regions),
        value=activation(call.channels, height, width),
        proj_weight=tensor(k * k, call.regions),
        proj_bias=tensor(k * k),
        rpb=tensor(GROUPS, 2 * k - 1, 2 * k - 1),
        kernel_size=k,
        # Logits of about one, so that no tap has all the weight.
        scale=(call.query_channels * call.regions) ** -0.5,
    )
    out, logsumexp = functions['contmix_forward'](arguments)
    if call.gradient:
        grad_out = activation(call.channels, height, width)
        return [*functions['contmix_backward'](grad_out, arguments, out, logsumexp)]
    return [out, logsumexp]
