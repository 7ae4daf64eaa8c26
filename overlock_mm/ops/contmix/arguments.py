"""The arguments of ContMix, bundled for everything behind the public function."""

from typing import NamedTuple

from torch import Tensor


class ContMixArguments(NamedTuple):
    """The arguments of :func:`overlock_mm.ops.contmix`, which gives their shapes."""

    query: Tensor
    key: Tensor
    value: Tensor
    proj_weight: Tensor
    proj_bias: Tensor
    rpb: Tensor
    kernel_size: int
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The six tensors."""
        return self[:6]
