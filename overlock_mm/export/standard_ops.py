"""Lets a network run, and be traced, in operators that ONNX has."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from overlock_mm import ops
from overlock_mm.export.contmix import contmix, tiling
from overlock_mm.export.pooling import adaptive_avg_pool2d, averaging_matrix
from overlock_mm.layers.contmix import upsample, upsampled_size
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.depthwise import reference

T = TypeVar('T')


class StandardOperators(TorchFunctionMode):
    """While active, replaces functions that ONNX lacks by formulations in its operators.

    These are the operators of this package, adaptive average pooling, and the resizing of maps that
    are smaller than their window. The matrix products of the fused form become 1 x 1 convolutions
    again: inference engines have memory layouts of their own.

    Args:
        fixed_size: Keep whatever follows from sizes only after its first use. A second run,
            which is traced, then finds constants; the graph serves this one size. Without it
            sizes are traced with all that follows from them.

    Example:
        >>> with torch.no_grad(), StandardOperators(fixed_size=True):
        ...     pass  # run or trace the network
    """

    def __init__(self, fixed_size: bool) -> None:
        super().__init__()
        self.fixed_size = fixed_size
        self._known: dict[Hashable, Any] = {}
        self._mixed_size: tuple[Tensor, Tensor] | None = None
        self._replacements: dict[Callable[..., Any], Callable[..., Any]] = {
            ops.contmix: self._contmix,
            F.adaptive_avg_pool2d: self._adaptive_avg_pool2d,
            upsample: self._upsample,
            **_REPLACEMENTS,
        }

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function or what replaces it."""
        return self._replacements.get(function, function)(*args, **(kwargs or {}))

    def _once(self, key: Hashable, function: Callable[..., T], *sizes: Any) -> T:
        if key not in self._known:
            self._known[key] = function(*sizes)
        return self._known[key]

    def _averaging_matrix(self, size: Any, output_size: Any) -> Tensor:
        if not self.fixed_size:
            return averaging_matrix(size, output_size)
        numbers = int(size), int(output_size)
        return self._once(('average', *numbers), averaging_matrix, *numbers)

    def _contmix(self, *arguments: Any, scale: float = 1.0, backend: str | None = None) -> Tensor:
        call = ContMixArguments._make((*arguments, scale))
        size = self._mixed_size or (int(call.value.shape[-2]), int(call.value.shape[-1]))
        key = ('tiling', *size, call.kernel_size)
        return contmix(call, self._once(key, tiling, *size, call.kernel_size))

    def _adaptive_avg_pool2d(self, x: Tensor, output_size: Any) -> Tensor:
        height, width = (output_size,) * 2 if isinstance(output_size, int) else output_size
        rows = self._averaging_matrix(x.shape[2], height)
        columns = self._averaging_matrix(x.shape[3], width)
        return adaptive_avg_pool2d(x, rows, columns)

    def _upsample(self, x: Tensor, kernel_size: int) -> Tensor:
        height, width = x.shape[-2:]
        rows, columns = int(height), int(width)
        size: Any
        if self.fixed_size:
            if min(rows, columns) >= kernel_size:
                return x
            size = upsampled_size(rows, columns, kernel_size)
        else:
            # Without a branch, so that the graph serves small maps and large ones. The exporter
            # takes the size of what was resized for a constant, so it is kept here.
            # Each stage has its own key, by the size of the traced image.
            key = ('upsampled', rows, columns, kernel_size)
            size = self._once(key, traced_upsampled_size, height, width, kernel_size)
            self._mixed_size = size
        return F.interpolate(x, size, mode='bilinear', align_corners=False)


def traced_upsampled_size(height: Any, width: Any, kernel_size: int) -> tuple[Tensor, Tensor]:
    """``upsampled_size`` without a branch; a map as large as the window keeps its size.

    In float64 like Python's numbers, and in the same order of operations.
    """
    sides = torch.stack([torch.as_tensor(height), torch.as_tensor(width)])
    window = torch.tensor(kernel_size)
    factor = window.double().div(torch.minimum(sides.min(), window).double())
    new = torch.maximum((factor * sides.double()).long(), window)
    return new[0], new[1]


def _pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    factor: Tensor | None = None,
    addend: Tensor | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    x = x if factor is None else x * factor[..., None, None]
    y = F.conv2d(x, weight[..., None, None], bias)
    return y if addend is None else addend + y


#: Public function -> its definition, which takes all arguments where the function has defaults.
_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    ops.depthwise_conv2d: partial(
        reference.depthwise_conv2d,
        input_bias=None,
        addend=None,
        gelu_input=False,
        gelu_output=False,
        dilation=1,
    ),
    ops.depthwise_conv2d_norm: partial(
        reference.depthwise_conv2d_norm, skip_weight=None, skip_bias=None
    ),
    ops.depthwise_conv2d_stats: partial(
        reference.depthwise_conv2d_stats,
        input_bias=None,
        addend=None,
        gelu_input=False,
        stat='mean',
    ),
    ops.pointwise_conv2d: _pointwise_conv2d,
}
