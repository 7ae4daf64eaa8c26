"""The arguments of ContMix in one piece, as everything behind the public function takes them."""

from typing import NamedTuple

from torch import Tensor


class ContMixArguments(NamedTuple):
    """See :func:`overlock_mm.ops.contmix` for their shapes."""

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
        """All six tensors."""
        return self[:6]
