"""How the Triton kernels divide maps among programs."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from overlock_mm.ops.triton_runtime import padded

#: Height of a tile of the map, and of a map that has no more rows in steps of the dilation. More
#: heights would fit small maps better, but each is another binary, which takes seconds to compile.
ROWS = 8
LOW_ROWS = 4
COLUMNS = 8
#: Most channels of a program: 128 bytes of half precision, a line of the cache.
SLICE = 64
#: Elements of a block that a thread holds: 16 bytes of half precision.
PER_THREAD = 8
#: Tile of the gradient of the weight; with at most MAX_TAPS sums of taps it fits the registers.
GRAD_ROWS = 8
GRAD_COLUMNS = 4
MAX_TAPS = 9
#: Programs per multiprocessor; more would only add partial sums.
GRAD_PROGRAMS = 8
#: Number of elements of a sample that 32-bit offsets reach.
NARROW = 2**31


@dataclass(frozen=True)
class MapTile:
    """Sizes of a program's block of the map.

    Attributes:
        rows: Rows, at steps of the dilation.
        columns: Columns.
        slice: Channels, padded.
        warps: Warps of a program.
        per_sample: Tiles of a sample.
        programs: Number of programs.
    """

    rows: int
    columns: int
    slice: int
    warps: int
    per_sample: int
    programs: int


@dataclass(frozen=True)
class WeightGradTile:
    """Sizes of a program's share of the gradient of the weight.

    Attributes:
        rows: Rows of a tile, at steps of the dilation.
        columns: Columns of a tile.
        slice: Channels, padded.
        warps: Warps of a program.
        taps: Taps of a group, all of one column of the kernel.
        groups: Groups of taps of a program.
        chunks: Shares of the tiles, each with partial sums of its own.
        programs: Number of programs.
    """

    rows: int
    columns: int
    slice: int
    warps: int
    taps: int
    groups: int
    chunks: int
    programs: int


def map_tile(x: Tensor, dilation: int) -> MapTile:
    """Return the tile of a convolution of x."""
    batch, channels, height, width = x.shape
    slices, channel_slice = _slices(channels)
    rows = _ceil(height, dilation)
    tile_rows = ROWS if rows > LOW_ROWS else LOW_ROWS
    per_sample = _ceil(rows, tile_rows) * dilation * _ceil(width, COLUMNS)
    return MapTile(
        tile_rows,
        COLUMNS,
        channel_slice,
        max(1, COLUMNS * channel_slice // (32 * PER_THREAD)),
        per_sample,
        batch * per_sample * slices,
    )


def weight_grad_tile(x: Tensor, kernel_size: int, dilation: int) -> WeightGradTile:
    """Return the shares of the gradient of a weight."""
    batch, channels, height, width = x.shape
    slices, channel_slice = _slices(channels)
    parts = _ceil(kernel_size, MAX_TAPS)
    groups_of_taps = parts * kernel_size
    # Four groups read a map half as often from the second cache as two do.
    groups = 4 if _ceil(groups_of_taps, 4) * 4 <= 1.2 * groups_of_taps else 2
    blocks = _ceil(groups_of_taps, groups)
    tiles = batch * _ceil(_ceil(height, dilation), GRAD_ROWS) * dilation
    tiles *= _ceil(width, GRAD_COLUMNS)
    wanted = GRAD_PROGRAMS * multiprocessors(x.device)
    chunks = min(tiles, _ceil(wanted, blocks * slices))
    return WeightGradTile(
        GRAD_ROWS,
        GRAD_COLUMNS,
        channel_slice,
        max(1, groups * GRAD_COLUMNS * channel_slice // (32 * PER_THREAD)),
        _ceil(kernel_size, parts),
        groups,
        chunks,
        chunks * slices * blocks,
    )


def channels_last(x: Tensor) -> Tensor:
    """Return a map with adjacent channels, itself if it has them."""
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def strides(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of sample, row and column."""
    sample, _, row, column = x.stride()
    return sample, row, column


def needs_wide_offsets(*maps: Tensor) -> bool:
    """Return whether 32 bits are too few for the offsets in a sample of one of the maps."""
    for x in maps:
        _, channels, height, width = x.shape
        _, channel, row, column = x.stride()
        if (channels - 1) * channel + (height - 1) * row + (width - 1) * column >= NARROW:
            return True
    return False


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU, 1 of anything else."""
    if device.type != 'cuda':
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _slices(channels: int) -> tuple[int, int]:
    """Return how many slices the channels make, and their size."""
    size = min(SLICE, padded(channels))
    return _ceil(channels, size), size


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
