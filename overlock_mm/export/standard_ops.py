"""Lets a network run, and be traced, in operators that ONNX has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm import ops
from overlock_mm.deploy import layers as folded_layers
from overlock_mm.export.contmix import contmix, tiling
from overlock_mm.export.pooling import adaptive_avg_pool2d, averaging_matrix
from overlock_mm.models import contmix as contmix_module
from overlock_mm.ops.depthwise import reference

T = TypeVar('T')


class StandardOperators:
    """What replaces the operators that ONNX lacks.

    Args:
        fixed_size: Keep what follows from sizes alone after its first use. A second run,
            which is traced, then finds constants; the graph serves this one size. Without it
            sizes are traced with all that follows from them.
    """

    def __init__(self, fixed_size: bool) -> None:
        self.fixed_size = fixed_size
        self._known: dict[Hashable, Any] = {}
        self._mixed_size: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace our operators, adaptive average pooling and the size that small maps are given.

        The matrix products of the deploy form become 1 x 1 convolutions again: inference
        engines have memory layouts of their own.
        """
        with ExitStack() as replaced:
            for owner, name, function in (
                (ops, 'contmix', self._contmix),
                (F, 'adaptive_avg_pool2d', self._adaptive_avg_pool2d),
                (contmix_module, 'enlarged_size', self._enlarged_size),
                (folded_layers, 'depthwise_conv2d', _depthwise_conv2d),
                (folded_layers, 'depthwise_conv2d_norm', _depthwise_conv2d_norm),
                (folded_layers, 'depthwise_conv2d_stats', _depthwise_conv2d_stats),
                (folded_layers.Pointwise, 'forward', _pointwise),
                (folded_layers.PointwiseSum, 'forward', _pointwise_sum),
            ):
                replaced.enter_context(_replaced(owner, name, function))
            yield

    def _once(self, key: Hashable, function: Callable[..., T], *sizes: Any) -> T:
        if key not in self._known:
            self._known[key] = function(*sizes)
        return self._known[key]

    def _averaging_matrix(self, size: Any, output_size: Any) -> Tensor:
        if not self.fixed_size:
            return averaging_matrix(size, output_size)
        numbers = int(size), int(output_size)
        return self._once(('average', *numbers), averaging_matrix, *numbers)

    def _contmix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        rpb: Tensor,
        kernel_size: int,
        *,
        scale: float = 1.0,
        backend: str | None = None,
    ) -> Tensor:
        size = self._mixed_size or (int(value.shape[-2]), int(value.shape[-1]))
        tiles = self._once(('tiling', *size, kernel_size), tiling, *size, kernel_size)
        return contmix(query, key, value, proj_weight, proj_bias, rpb, tiles, scale)

    def _adaptive_avg_pool2d(self, x: Tensor, output_size: Any) -> Tensor:
        height, width = (output_size,) * 2 if isinstance(output_size, int) else output_size
        rows = self._averaging_matrix(x.shape[2], height)
        columns = self._averaging_matrix(x.shape[3], width)
        return adaptive_avg_pool2d(x, rows, columns)

    def _enlarged_size(self, height: Any, width: Any, kernel_size: int) -> tuple[Any, Any]:
        if self.fixed_size:
            return _enlarged_size(int(height), int(width), kernel_size)
        # The exporter takes the size of what was resized for a constant, so it is kept here.
        # By the size of the traced image, each stage has another key.
        key = ('enlarged', int(height), int(width), kernel_size)
        self._mixed_size = self._once(key, traced_enlarged_size, height, width, kernel_size)
        return self._mixed_size


_enlarged_size = contmix_module.enlarged_size


def traced_enlarged_size(height: Any, width: Any, kernel_size: int) -> tuple[Tensor, Tensor]:
    """As ``enlarged_size``, without a branch; a map as large as the window keeps its size.

    In float64 like Python's numbers, and in the same order of operations.
    """
    sides = torch.stack([torch.as_tensor(height), torch.as_tensor(width)])
    window = torch.tensor(kernel_size)
    factor = window.double().div(torch.minimum(sides.min(), window).double())
    new = torch.maximum((factor * sides.double()).long(), window)
    return new[0], new[1]


# The definitions take all arguments, the public functions have defaults.
_depthwise_conv2d = partial(
    reference.depthwise_conv2d, input_bias=None, addend=None, gelu_input=False, gelu_output=False
)
_depthwise_conv2d_norm = partial(reference.depthwise_conv2d_norm, skip_weight=None, skip_bias=None)
_depthwise_conv2d_stats = partial(
    reference.depthwise_conv2d_stats, input_bias=None, addend=None, gelu_input=False, stat='mean'
)


def _pointwise(layer: folded_layers.Pointwise, x: Tensor, factor: Tensor | None = None) -> Tensor:
    x = x if factor is None else x * factor[..., None, None]
    return F.conv2d(x, layer.weight[..., None, None], layer.bias)


def _pointwise_sum(
    layer: folded_layers.PointwiseSum, skip: Tensor, x: Tensor, factor: Tensor | None = None
) -> Tensor:
    x = x if factor is None else x * factor[..., None, None]
    return skip + F.conv2d(x, layer.weight[..., None, None])


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)
