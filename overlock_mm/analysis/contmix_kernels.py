"""The kernels that ContMix makes for a place in an image (paper section 3.3).

The network runs once; what its ContMix modules project from the image is kept, and the module's
own mathematics (:mod:`overlock_mm.layers.contmix`, :mod:`overlock_mm.ops.contmix.reference`) makes
the kernels of any token from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from overlock_mm.layers.contmix import REGION_GRID, ContMix, KernelParameters
from overlock_mm.models.arch import STAGE_BLOCKS, STAGES
from overlock_mm.models.overlock import OverLoCK
from overlock_mm.ops.contmix import reference

#: The stages with a ContMix in their blocks.
FOCUS_STAGES = STAGES[-2:]
#: Left, top, right and bottom; right and bottom are exclusive. In tokens or in pixels.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ContMixKernels:
    """What one ContMix makes for one token. Boxes are (left, top, right, bottom).

    Args:
        block: Name of the block, such as ``'focus3.0'``.
        token: Row and column of the token in the mixed map.
        mixed_size: Rows and columns of the map that is mixed. It is larger than the block's where
            that is smaller than the large window, and then several of its tokens are averaged
            into one of the block's.
        token_box: The token in the image, in pixels.
        kernels: The small and the large kernel of every group, [G, K, K]; each sums to one.
        windows: What each kernel is laid over, in tokens of the mixed map. Near a border the token
            is not in the middle.
        window_boxes: The same in the image, in pixels.
        affinity: Scaled affinity of the token to the regions, [G, 7, 7].
        regions: The regions in row-major order, in tokens of the mixed map. They overlap where the
            map does not divide by seven.
        region_boxes: The same in the image, in pixels.
    """

    block: str
    token: tuple[int, int]
    mixed_size: tuple[int, int]
    token_box: Box
    kernels: tuple[Tensor, Tensor]
    windows: tuple[Box, Box]
    window_boxes: tuple[Box, Box]
    affinity: Tensor
    regions: tuple[Box, ...]
    region_boxes: tuple[Box, ...]


@dataclass(frozen=True)
class ContMixProjections:
    """What one ContMix makes its kernels from, for all tokens of one image.

    Args:
        block: Name of the block.
        query: [G, Cq, H, W] of the mixed map.
        key: [G, Cq, S].
        parameters: Parameters of the small and the large kernel.
        scale: Factor on the affinity.
        image_size: Height and width of the image in pixels.
        upsampled: Whether the map is smaller than the large window, and therefore resized.
    """

    block: str
    query: Tensor
    key: Tensor
    parameters: list[KernelParameters]
    scale: float
    image_size: tuple[int, int]
    upsampled: bool

    @property
    def mixed_size(self) -> tuple[int, int]:
        """Rows and columns of the map that is mixed."""
        height, width = self.query.shape[-2:]
        return height, width

    @cached_property
    def affinity(self) -> Tensor:
        """Affinity of every token to the regions, [G, H, W, S]."""
        return reference.affinity(self.query[None], self.key[None], self.scale)[0]

    @cached_property
    def kernels(self) -> tuple[Tensor, ...]:
        """The small and the large kernel of every token, [G, H, W, K*K]."""
        return tuple(
            reference.contmix_kernels(
                self.query[None],
                self.key[None],
                kernel.proj_weight,
                kernel.proj_bias,
                kernel.rpb,
                self.scale,
            )[0]
            for kernel in self.parameters
        )

    def edges(self) -> tuple[list[int], list[int]]:
        """Return where rows and columns of the mixed map begin and the last one ends, in pixels.

        The image is divided evenly among the tokens, as it is when a map is resized to it, and
        rounded to whole pixels.
        """
        rows, columns = (
            [round(i * side / size) for i in range(size + 1)]
            for size, side in zip(self.mixed_size, self.image_size, strict=True)
        )
        return rows, columns

    def token_at(self, position: tuple[float, float]) -> tuple[int, int]:
        """Return the row and column of the token that covers a place.

        Args:
            position: x and y in pixels of the image.

        Raises:
            ValueError: It lies outside the image.
        """
        check_position(position, self.image_size)
        x, y = position
        rows, columns = self.edges()
        return (
            sum(edge <= y for edge in rows[1:]),
            sum(edge <= x for edge in columns[1:]),
        )

    def region_spans(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """First row and end of each of the seven rows of regions, and the same of the columns.

        Those of adaptive average pooling: rounded outwards, so that neighbours may share tokens.
        """
        rows, columns = (
            [
                (i * size // REGION_GRID, -(-(i + 1) * size // REGION_GRID))
                for i in range(REGION_GRID)
            ]
            for size in self.mixed_size
        )
        return rows, columns

    def at(self, position: tuple[float, float]) -> ContMixKernels:
        """Return the kernels for a place; see :func:`contmix_kernels`."""
        row, column = token = self.token_at(position)
        rows, columns = self.edges()

        def in_pixels(box: Box) -> Box:
            left, top, right, bottom = box
            return columns[left], rows[top], columns[right], rows[bottom]

        windows = []
        for kernel in self.parameters:
            top, left = (
                int(reference.window_starts(size, kernel.size)[i])
                for i, size in zip(token, self.mixed_size, strict=True)
            )
            windows.append((left, top, left + kernel.size, top + kernel.size))
        row_spans, column_spans = self.region_spans()
        regions = tuple(
            (left, top, right, bottom) for top, bottom in row_spans for left, right in column_spans
        )
        small, large = (
            weights[:, row, column].unflatten(-1, (kernel.size, kernel.size))
            for weights, kernel in zip(self.kernels, self.parameters, strict=True)
        )
        return ContMixKernels(
            block=self.block,
            token=token,
            mixed_size=self.mixed_size,
            token_box=in_pixels((column, row, column + 1, row + 1)),
            kernels=(small, large),
            windows=(windows[0], windows[1]),
            window_boxes=(in_pixels(windows[0]), in_pixels(windows[1])),
            affinity=self.affinity[:, row, column].unflatten(-1, (REGION_GRID, REGION_GRID)),
            regions=regions,
            region_boxes=tuple(map(in_pixels, regions)),
        )


def contmix_blocks(model: nn.Module) -> dict[str, ContMix]:
    """Return every ContMix of a network by the name of its block: ``focus3.0``, ``focus3.1``, ...

    Args:
        model: An ``OverLoCK``, or a model whose ``backbone`` is one.

    Raises:
        TypeError: It is neither.
    """
    backbone = _backbone(model)
    return {
        f'{stage}.{index}': block.contmix
        for stage in FOCUS_STAGES
        for index, block in backbone.get_submodule(STAGE_BLOCKS[stage]).named_children()
    }


def check_blocks(model: nn.Module, blocks: Sequence[str]) -> None:
    """Raise a ValueError that lists the existing blocks unless all of these exist."""
    known = contmix_blocks(model)
    unknown = [block for block in blocks if block not in known]
    if unknown:
        raise ValueError(
            f'There is no block {", ".join(map(repr, unknown))} with a ContMix. There are '
            f'{", ".join(known)}.'
        )


def check_group(model: nn.Module, blocks: Sequence[str], group: int) -> None:
    """Raise a ValueError unless all of these blocks have a group of this number."""
    modules = contmix_blocks(model)
    for block in blocks:
        groups = modules[block].groups
        if not 0 <= group < groups:
            raise ValueError(f'{block} has the groups 0 to {groups - 1}, got {group}.')


def check_position(position: tuple[float, float], image_size: tuple[int, int]) -> None:
    """Raise a ValueError unless x and y lie within an image of a height and width."""
    x, y = position
    height, width = image_size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f'The position must lie within the {width} x {height} pixels of the image (width x '
            f'height), got x={x}, y={y}.'
        )


def _projections_of(
    module: ContMix, maps: tuple[Tensor, Tensor, Tensor], block: str, image: Tensor
) -> ContMixProjections:
    mixed = module.upsample(*maps[:2])
    query, key = module.project(*mixed)
    return ContMixProjections(
        block=block,
        query=query[0],
        key=key[0],
        parameters=[
            KernelParameters(kernel.size, *(tensor.detach() for tensor in kernel[1:]))
            for kernel in module.kernel_parameters()
        ],
        scale=module.scale,
        image_size=(image.shape[-2], image.shape[-1]),
        upsampled=mixed[0].shape != maps[0].shape,
    )


@torch.no_grad()
def project_contmix(
    model: nn.Module, image: Tensor, blocks: Sequence[str] | None = None
) -> dict[str, ContMixProjections]:
    """Run a network once and keep what its ContMix modules make their kernels from.

    Args:
        model: An ``OverLoCK``, or a model whose ``backbone`` is one, in evaluation mode.
        image: [3, H, W] or [1, 3, H, W], normalised as the network expects it. It is taken to the
            device and dtype of the model.
        blocks: Names of :func:`contmix_blocks`; None is all of them.

    Returns:
        The projections by name of the block, in the given order.

    Raises:
        TypeError: The model has no ContMix.
        ValueError: The model is in training mode or never reaches a block, a block does not exist,
            or the image is not a single one of the stated shape.
    """
    backbone = _backbone(model)
    modules = contmix_blocks(model)
    blocks = list(modules) if blocks is None else blocks
    check_blocks(model, blocks)
    if backbone.training:
        raise ValueError('The model must be in evaluation mode. Call model.eval() first.')
    if image.dim() == 3:
        image = image[None]
    if image.dim() != 4 or len(image) != 1:
        raise ValueError(
            f'image must be one image, [3, H, W] or [1, 3, H, W], got {list(image.shape)}.'
        )
    projections: dict[str, ContMixProjections] = {}

    def keep(block: str) -> Any:
        def hook(module: ContMix, maps: tuple[Tensor, Tensor, Tensor]) -> None:
            projections[block] = _projections_of(module, maps, block, image)

        return hook

    hooks = [modules[block].register_forward_pre_hook(keep(block)) for block in blocks]
    try:
        backbone(image.to(next(backbone.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    missed = [block for block in blocks if block not in projections]
    if missed:
        raise ValueError(
            f'The network never reaches {", ".join(missed)}: it has '
            f'out_indices={backbone.out_indices}. Build it with 3 among them.'
        )
    return {block: projections[block] for block in blocks}


def contmix_kernels(
    model: nn.Module, image: Tensor, block: str, position: tuple[float, float]
) -> ContMixKernels:
    """Return the two dynamic kernels of every group that ContMix makes for a place in an image.

    Args:
        model: An ``OverLoCK``, or a model whose ``backbone`` is one, in evaluation mode.
        image: [3, H, W] or [1, 3, H, W], normalised as the network expects it.
        block: Name of the block: ``'focus3.0'`` is the first dynamic block at stride 16,
            ``'focus4.0'`` the first at stride 32.
        position: x and y in pixels of the image.

    Returns:
        Kernels and affinities in float32 (float64 of a float64 model), and where they lie. For
        many positions or blocks of one image use :func:`project_contmix`, which runs the network
        once.

    Raises:
        TypeError: The model has no ContMix.
        ValueError: As for :func:`project_contmix`, or the position lies outside the image.

    Example:
        >>> model, image = OverLoCK('xt').eval(), torch.rand(3, 224, 224)
        >>> kernels = contmix_kernels(model, image, 'focus3.0', position=(3, 99))
        >>> [tuple(kernel.shape) for kernel in kernels.kernels], kernels.token
        ([(8, 5, 5), (8, 13, 13)], (6, 0))
    """
    return project_contmix(model, image, [block])[block].at(position)


def _backbone(model: nn.Module) -> OverLoCK:
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, OverLoCK):
        whose = type(model).__name__
        if backbone is not model:
            whose += f' with the backbone {type(backbone).__name__}'
        raise TypeError(f'The model must be an OverLoCK or have one as its backbone, got {whose}.')
    return backbone
