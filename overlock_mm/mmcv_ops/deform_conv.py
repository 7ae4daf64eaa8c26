"""Deformable convolution (Dai et al., ICCV 2017) and its modulated form (Zhu et al., CVPR 2019).

Both are torchvision's. Offsets are (N, 2 * G * kernel height * kernel width, H', W') for G groups
of channels, rows before columns. Points outside the map count as 0; the derivative at a whole
coordinate is that to its right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, torchvision_operator, widened

_PLAIN = Family(('DeformConv2d', 'DeformConv2dPack', 'SAConv2d', 'deform_conv2d'), 'torchvision')
_MODULATED = Family(
    ('ModulatedDeformConv2d', 'ModulatedDeformConv2dPack', 'modulated_deform_conv2d'),
    'torchvision',
)


@_PLAIN.operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Convolve at shifted points.

    Args:
        input: (N, C, H, W).
        weight: (C', C / groups, kernel height, kernel width).
        offset: See above.
        output: (N, C', H', W'), receives the result.
        columns: Empty; see :func:`deform_conv_backward_input`.
        ones: Not used.
        geometry: Stride ``dH`` and ``dW``, padding ``padH`` and ``padW``, ``dilationH`` and
            ``dilationW``, ``group`` and ``deformable_group``. The others of mmcv's follow from
            the tensors.
    """
    output.copy_(_convolve(input, weight, offset, None, None, _geometry(**geometry)))


@_PLAIN.operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Derivatives of :func:`deform_conv_forward` by its input and its offsets.

    torchvision finds those by the weight along the way. mmcv asks for them next, with the same
    scratch tensor, so that they are kept there.

    Args:
        input: The argument of the forward operator.
        offset: The argument of the forward operator.
        gradOutput: (N, C', H', W').
        gradInput: Receives the derivative by the input, in its shape.
        gradOffset: Receives the derivative by the offsets, in their shape.
        weight: The argument of the forward operator.
        columns: Receives the derivative by the weight, in its shape.
        geometry: The argument of the forward operator.
    """
    by_input, by_weight, by_offset, *_ = _differentiate(
        gradOutput, input, weight, offset, None, None, _geometry(**geometry)
    )
    gradInput.copy_(by_input)
    gradOffset.copy_(by_offset)
    columns.resize_(weight.shape).copy_(by_weight)


@_PLAIN.operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **geometry: int,
) -> None:
    """Derivative of :func:`deform_conv_forward` by its weight.

    Args:
        input: The argument of the forward operator.
        offset: The argument of the forward operator.
        gradOutput: (N, C', H', W').
        gradWeight: Receives the derivative, in the shape of the weight.
        columns: What :func:`deform_conv_backward_input` left, or empty.
        ones: Not used.
        scale: Factor of the derivative.
        geometry: The argument of the forward operator.
    """
    by_weight = columns
    if not columns.numel():
        # Its value does not matter to its own derivative.
        _, by_weight, *_ = _differentiate(
            gradOutput, input, gradWeight, offset, None, None, _geometry(**geometry)
        )
    gradWeight.copy_(by_weight).mul_(scale)


@_MODULATED.operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Convolve at shifted points with a weight for each.

    Args:
        input: (N, C, H, W).
        weight: (C', C / groups, kernel height, kernel width).
        bias: (C',), used if ``with_bias``.
        ones: Not used.
        offset: See above.
        mask: (N, G * kernel height * kernel width, H', W'), weights of the points.
        output: (N, C', H', W'), receives the result.
        columns: Not used.
        with_bias: Whether there is a bias.
        geometry: ``stride_h`` and ``stride_w``, ``pad_h`` and ``pad_w``, ``dilation_h`` and
            ``dilation_w``, ``group`` and ``deformable_group``. The others of mmcv's follow from
            the tensors.
    """
    shift = bias if with_bias else None
    output.copy_(_convolve(input, weight, offset, mask, shift, _modulated_geometry(**geometry)))


@_MODULATED.operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Derivatives of :func:`modulated_deform_conv_forward`.

    Args:
        input: The argument of the forward operator.
        weight: The argument of the forward operator.
        bias: The argument of the forward operator.
        ones: Not used.
        offset: The argument of the forward operator.
        mask: The argument of the forward operator.
        columns: Not used.
        grad_input: Receives the derivative by the input, in its shape.
        grad_weight: Receives the one by the weight.
        grad_bias: Receives the one by the bias, if ``with_bias``.
        grad_offset: Receives the one by the offsets.
        grad_mask: Receives the one by the weights of the points.
        grad_output: (N, C', H', W').
        with_bias: The argument of the forward operator.
        geometry: The argument of the forward operator.
    """
    shift = bias if with_bias else None
    by_input, by_weight, by_offset, by_mask, by_bias = _differentiate(
        grad_output, input, weight, offset, mask, shift, _modulated_geometry(**geometry)
    )
    grad_input.copy_(by_input)
    grad_weight.copy_(by_weight)
    grad_offset.copy_(by_offset)
    grad_mask.copy_(by_mask)
    if with_bias:
        grad_bias.copy_(by_bias)


def _geometry(
    dH: int,
    dW: int,
    padH: int,
    padW: int,
    dilationH: int,
    dilationW: int,
    group: int,
    deformable_group: int,
    **derived: int,
) -> tuple[int, ...]:
    """Return the arguments in torchvision's order."""
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _modulated_geometry(
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    **derived: int,
) -> tuple[int, ...]:
    """Return the arguments in torchvision's order."""
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the arguments in torchvision's order and in the dtype of sums; no mask is empty."""
    if mask is None:
        mask = input.new_empty(input.size(0), 0)
    if bias is None:
        bias = input.new_zeros(weight.size(0))
    return widened(input, weight, offset, mask, bias)


def _convolve(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    tensors = _arguments(input, weight, offset, mask, bias)
    return torchvision_operator('deform_conv2d')(*tensors, *geometry, mask is not None)


def _differentiate(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Any:
    """Derivatives by input, weight, offset, mask and bias."""
    tensors = _arguments(input, weight, offset, mask, bias)
    by_input, by_weight, by_offset, by_mask, by_bias = torchvision_operator(
        '_deform_conv2d_backward'
    )(*widened(grad), *tensors, *geometry, mask is not None)
    by_offset = _without_edge(by_offset, tensors[2].contiguous(), weight.shape[2:], geometry)
    return by_input, by_weight, by_offset, by_mask, by_bias


def _without_edge(
    by_offset: Tensor, offset: Tensor, kernel: tuple[int, ...], geometry: tuple[int, ...]
) -> Tensor:
    """Return the derivative by the offsets, 0 at points a whole pixel outside.

    In mmcv those are out of the map and have no derivative, while torchvision's kernels take the
    one to the right. With offsets of 0, as layers have at first, a padding of 1 leads there.
    """
    axes = []
    for axis, (tap, place) in enumerate(zip(kernel, offset.shape[2:], strict=True)):
        stride, padding, dilation = geometry[axis:6:2]
        taps = torch.arange(tap, device=offset.device) * dilation
        places = torch.arange(place, device=offset.device) * stride
        axes.append(taps[:, None] + places - padding)
    shape = (len(offset), -1, *kernel, 2, *offset.shape[2:])
    y, x = offset.view(shape).unbind(4)
    edge = (y + axes[0][:, None, :, None] == -1) | (x + axes[1][:, None] == -1)
    return by_offset.view(shape).masked_fill(edge.unsqueeze(4), 0).view_as(offset)
