"""Parameters and multiply-adds of a network, ContMix included."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from overlock_mm.models.overlock import image_channels


@dataclass(frozen=True)
class Complexity:
    """Counts for one image.

    Args:
        parameters: All parameters of the module.
        dense: Multiply-adds of convolutions and linear layers.
        affinity: ContMix's queries times region keys; once for the two kernels that share it,
            though the operator computes it for each rather than store it.
        projection: ContMix's projection of affinities to the logits of the kernels.
        aggregation: ContMix's kernels times values.
    """

    parameters: int
    dense: int
    affinity: int
    projection: int
    aggregation: int

    @property
    def contmix(self) -> int:
        """Multiply-adds of the operator, all three steps."""
        return self.affinity + self.projection + self.aggregation

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.dense + self.contmix


def measure_complexity(
    module: nn.Module, forward: Callable[[nn.Module, Tensor], Any], shape: tuple[int, int]
) -> Complexity:
    """Count multiply-adds on a copy of the module on torch's meta device.

    One multiply-add counts once. Norms, activations, pooling, resizing and softmax are left out,
    as is usual.

    Args:
        module: Its parameters are counted.
        forward: Calls the copy with an image [1, C, H, W], of as many channels as it takes.
        shape: H and W.
    """
    copy = deepcopy(module).to('meta').eval()
    image = torch.empty(1, image_channels(module), *shape, device='meta')
    contmix = _ContMixFormula()
    formulas = {torch.ops.overlock_mm.contmix: contmix, **_FORMULAS}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        forward(copy, image)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        # torch counts a multiplication and an addition separately.
        dense=counter.get_total_flops() // 2 - sum(contmix.counts.values()),
        **contmix.counts,
    )


class _ContMixFormula:
    """Counts the operations of ContMix, and keeps the multiply-adds of its three steps apart."""

    _get_raw = True  # by which torch knows formulas of tensors from those of shapes

    def __init__(self) -> None:
        self.counts = dict.fromkeys(('affinity', 'projection', 'aggregation'), 0)
        self._known_query: Tensor | None = None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, proj_weight: Tensor, *_: Any, **__: Any
    ) -> int:
        before = sum(self.counts.values())
        batch, groups, query_channels, height, width = query.shape
        rows = batch * groups * height * width
        taps, regions = proj_weight.shape
        if query is not self._known_query:
            self.counts['affinity'] += rows * query_channels * regions
        self._known_query = query
        self.counts['projection'] += rows * regions * taps
        self.counts['aggregation'] += rows * taps * value.shape[2]
        return 2 * (sum(self.counts.values()) - before)


def _depthwise_flops(*shapes: Any, out_shape: Any, **_: Any) -> int:
    """Return multiply-adds of a depthwise convolution, without the operations fused with it."""
    map_shape = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return 2 * prod(map_shape) * shapes[1][-1] ** 2


_FUSED = ('depthwise_conv2d', 'depthwise_conv2d_norm', 'depthwise_conv2d_stats')
#: Operators that torch's counter does not know.
_FORMULAS = {getattr(torch.ops.overlock_mm, name): _depthwise_flops for name in _FUSED}
