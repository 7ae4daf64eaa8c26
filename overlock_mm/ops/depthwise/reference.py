"""The definition of the operators in plain PyTorch.

Every other backend is tested against these functions. They run on any device and dtype,
with the library's convolution, and are differentiable by autograd, which gives the
operators their gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from overlock_mm.ops.precision import compute_dtype


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    addend: Tensor | None,
    gelu_input: bool,
    gelu_output: bool,
    dilation: int,
) -> Tensor:
    """See :func:`overlock_mm.ops.depthwise_conv2d`."""
    x = x if input_bias is None else x + input_bias.view(-1, 1, 1)
    x = F.gelu(x) if gelu_input else x
    # torch 2.6 traces sizes, and takes no traced padding
    padding = dilation * (int(weight.shape[-1]) // 2)
    y = F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1])
    y = y if addend is None else y + addend
    return F.gelu(y) if gelu_output else y


def depthwise_conv2d_weight_grad(
    grad_out: Tensor, x: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    """Return the gradient of the weight, [C, 1, k, k], in the dtype of accumulation."""
    channels = x.shape[1]
    gradient = conv2d_weight(
        x,
        (channels, 1, kernel_size, kernel_size),
        grad_out,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=channels,
    )
    return gradient.to(compute_dtype(x.dtype)).contiguous()


def depthwise_conv2d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`overlock_mm.ops.depthwise_conv2d_norm`."""
    y = depthwise_conv2d(x, weight, bias, None, None, False, False, 1)
    normed = F.layer_norm(y.permute(0, 2, 3, 1), norm_weight.shape, norm_weight, norm_bias, eps)
    if skip_weight is not None:
        y = skip_weight.view(-1, 1, 1) * y
        y = y if skip_bias is None else y + skip_bias.view(-1, 1, 1)
    return y, normed.permute(0, 3, 1, 2)


def depthwise_conv2d_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    addend: Tensor | None,
    gelu_input: bool,
    stat: str,
) -> tuple[Tensor, Tensor]:
    """See :func:`overlock_mm.ops.depthwise_conv2d_stats`."""
    y = depthwise_conv2d(x, weight, bias, input_bias, addend, gelu_input, False, 1)
    dtype = compute_dtype(y.dtype)
    if stat == 'mean':
        return y, y.mean((2, 3), dtype=dtype)
    return y, torch.linalg.vector_norm(y, dim=(2, 3), dtype=dtype)
