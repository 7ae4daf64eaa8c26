"""What is measured: shapes, the tensors of a call, and its floor in bytes and FLOPs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks import depthwise
from benchmarks.depthwise import DepthwiseCase
from overlock_mm.layers.contmix import REGION_GRID
from overlock_mm.models.arch import ARCHS

#: Image size and batch sizes.
IMAGES = {(224, 224): (1, 64), (512, 512): (1, 8), (800, 1280): (1, 2, 8)}


@dataclass(frozen=True)
class Case:
    """One call as the network makes it.

    Attributes:
        op: 'contmix' or 'neighborhood_aggregate'.
        batch: B.
        groups: G.
        channels: C, which is Cq too.
        height: Rows of the map.
        width: Columns of the map.
        kernel_size: K.
        origin: Where the network makes this call.
    """

    op: str
    batch: int
    groups: int
    channels: int
    height: int
    width: int
    kernel_size: int
    origin: str

    @property
    def name(self) -> str:
        """Unique and stable: results are compared by it."""
        return (
            f'{self.op}-b{self.batch}-g{self.groups}-c{self.channels}'
            f'-{self.height}x{self.width}-k{self.kernel_size}'
        )

    def arguments(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Tensors of the call, leaves that ask for gradients; parameters stay float32."""
        generator = torch.Generator().manual_seed(0)

        def normal(*sizes: int, scale: float = 1.0, to: torch.dtype = dtype) -> Tensor:
            return (torch.randn(sizes, generator=generator) * scale).to(device, to)

        b, g, c, h, w, k = (
            self.batch,
            self.groups,
            self.channels,
            self.height,
            self.width,
            self.kernel_size,
        )
        if self.op == 'neighborhood_aggregate':
            weight = normal(b, g, h, w, k * k, to=torch.float32).softmax(-1).to(dtype)
            tensors = [weight, normal(b, g, h, w, c)]
        else:
            regions, full = REGION_GRID**2, torch.float32
            tensors = [
                normal(b, g, c, h, w),
                normal(b, g, c, regions),
                normal(b, g, c, h, w),
                normal(k * k, regions, scale=0.1, to=full),
                normal(k * k, to=full),
                normal(g, 2 * k - 1, 2 * k - 1, to=full),
            ]
        return [x.requires_grad_() for x in tensors]

    def forward_flops(self) -> int:
        """Operations of the definition, a multiply-add counted as two."""
        tokens = self.batch * self.groups * self.height * self.width
        taps = self.kernel_size**2
        multiply_adds = self.channels * taps
        if self.op == 'contmix':
            multiply_adds += REGION_GRID**2 * (self.channels + taps)
        return 2 * tokens * multiply_adds

    def as_dict(self) -> dict:
        """The case as plain data, for the results file."""
        return asdict(self)


def in_channels_last(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors of a ContMix call as a network in channels_last memory has them.

    All groups of a token lie side by side, as in the maps [B, G * C, H, W] of which they are views.
    Tensors of the aggregation, whose channels are innermost anyway, stay as they are.
    """
    if len(tensors) != 6:
        return tensors
    query, key, value, *parameters = tensors

    def innermost(x: Tensor) -> Tensor:
        copy = x.detach().flatten(1, 2).to(memory_format=torch.channels_last).view_as(x)
        return copy.requires_grad_(x.requires_grad)

    regions = key.detach().unflatten(3, (REGION_GRID, REGION_GRID))
    key = innermost(regions).flatten(3).requires_grad_(key.requires_grad)
    return [innermost(query), key, innermost(value), *parameters]


def floor_bytes(tensors: list[Tensor], backward: bool) -> int:
    """Bytes that any implementation must move: each input read and each result written once.

    Forward and backward together read inputs twice, the output's gradient once, and write
    the output and one gradient per input.
    """
    inputs = sum(x.numel() * x.element_size() for x in tensors)
    value = tensors[2] if len(tensors) == 6 else tensors[1]
    output = value.numel() * value.element_size()
    return 3 * inputs + 2 * output if backward else inputs + output


def all_cases(device: str = 'cpu') -> Iterator[Case | DepthwiseCase]:
    """The registry, small first; on 'cuda' also the convolutions of training."""
    yield from contmix_cases()
    yield from depthwise.all_cases()
    if device == 'cuda':
        yield from depthwise.training_cases()


def contmix_cases() -> Iterator[Case]:
    """ContMix and the aggregation."""
    yield Case('neighborhood_aggregate', 8, 8, 16, 14, 14, 13, 'the case known from NATTEN 0.17')
    for image, batches in IMAGES.items():
        for batch in batches:
            for variant in ('t', 'b'):
                arch = ARCHS[variant]
                for stage in (2, 3):
                    stride = 8 << (stage - 1)
                    groups = 2 * arch.groups[stage - 2]
                    for kernel_size in (arch.kernel_sizes[stage], arch.contmix_small_kernel):
                        yield Case(
                            'contmix',
                            batch,
                            groups,
                            arch.channels[stage] // 2 // groups,
                            image[0] // stride,
                            image[1] // stride,
                            kernel_size,
                            f'{variant.upper()}, stage {stage + 1}, {image[0]} x {image[1]}',
                        )
