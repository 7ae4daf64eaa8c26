"""ContMix in operators that ONNX has: matrix products and gathers, no loop over the taps.

Every token has a window of its own, which a matrix product does not know. So tokens are
taken in tiles of ``TILE`` neighbours in a row of the map. The windows of a tile lie in the
same K rows and in ``K + TILE - 1`` columns, the slots. A token is given weights for all
slots of all K rows, and those outside its window get a logit of minus infinity.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments

#: Tokens per tile. A wider one copies each value less often and computes more unused logits;
#: among 4, 8 and 16 this is the fastest on the maps of 224 x 224 and of 800 x 1280 pixels.
TILE = 4


@dataclass(frozen=True)
class Tiling:
    """The border rule for a map and a window size, as indices.

    Attributes:
        size: (H, W) of the map.
        tiles: Tiles in a row of the map; the last one may reach beyond it.
        rows: [H*K], the rows of every token row's window.
        columns: [tiles * slots], the column of every slot.
        row_distance: [H], how far a token lies below the first row of its window.
        bias_columns: [tiles * TILE * slots], into the columns of the position bias.
        tap_columns: [tiles * TILE * slots], into the columns of the window.
        mask: [tiles, TILE, slots], zero in a token's window and minus infinity outside.
        place: [tiles, 1, TILE, TILE, 1], one where a token's window begins so many slots
            after the first, else zero.
    """

    size: tuple[int, int]
    tiles: int
    rows: Tensor
    columns: Tensor
    row_distance: Tensor
    bias_columns: Tensor
    tap_columns: Tensor
    mask: Tensor
    place: Tensor


def _window_starts(token: Tensor, size: int, kernel_size: int) -> Tensor:
    """The border rule: see :func:`overlock_mm.ops.neighborhood_aggregate`."""
    return (token - kernel_size // 2).clamp(min=0).clamp(max=size - kernel_size)


def tiling(height: int, width: int, kernel_size: int) -> Tiling:
    """Indices for a map of H x W and windows of K x K; under tracing both sizes stay variable."""
    taps, slots = torch.arange(kernel_size), torch.arange(kernel_size + TILE - 1)
    row = torch.arange(height)
    first_row = _window_starts(row, height, kernel_size)

    tiles = (width + TILE - 1) // TILE
    # What a tile computes beyond the map is cut off; any column serves.
    token = torch.arange(tiles * TILE).clamp(max=width - 1).reshape(-1, TILE)
    first_column = _window_starts(token, width, kernel_size)
    tile_column = first_column[:, :1]
    column = (tile_column + slots)[:, None]  # [tiles, 1, slots]
    tap = column - first_column[..., None]  # [tiles, TILE, slots]
    mask = torch.zeros(1).masked_fill((tap < 0) | (tap >= kernel_size), -torch.inf)
    place = first_column - tile_column
    return Tiling(
        size=(height, width),
        tiles=tiles,
        rows=(first_row[:, None] + taps).flatten(),
        columns=column.clamp(max=width - 1).flatten(),
        row_distance=row - first_row,
        bias_columns=(column - token[..., None] + kernel_size - 1)
        .clamp(0, 2 * kernel_size - 2)
        .flatten(),
        tap_columns=tap.clamp(0, kernel_size - 1).flatten(),
        mask=mask,
        place=(place[..., None] == torch.arange(TILE)).float()[:, None, :, :, None],
    )


def contmix(arguments: ContMixArguments, tiles: Tiling) -> Tensor:
    """See :func:`overlock_mm.ops.contmix`; ``tiles`` are for its window and map size."""
    query, key, value, proj_weight, proj_bias, rpb, _, scale = arguments
    groups, query_channels = int(query.shape[1]), int(query.shape[2])
    channels, k = int(value.shape[2]), (int(rpb.shape[-1]) + 1) // 2
    slots = k + TILE - 1
    height, width = tiles.size

    # [BG, tiles, H, TILE, 1, Cq]. A token meets the kernel of its place: its query is written
    # into the part of a longer one that belongs to the place.
    tokens = F.pad(query.flatten(0, 1), (0, tiles.tiles * TILE - width))
    tokens = _channels_to_end(tokens).reshape(-1, height, tiles.tiles, TILE * query_channels)
    tokens = tokens.transpose(1, 2)
    tokens = tokens.reshape(-1, tiles.tiles, height, TILE, 1, query_channels) * tiles.place
    tokens = tokens.reshape(-1, tiles.tiles * height * TILE, TILE * query_channels)
    kernels = key.flatten(0, 1).unsqueeze(1) @ _placed_projection(proj_weight * scale, k)
    logits = tokens @ kernels.reshape(-1, TILE * query_channels, k * slots)
    logits = logits.reshape(-1, groups, tiles.tiles, height, TILE, k * slots)
    # In name it depends on the batch. Otherwise the bias of all tokens would be folded into a
    # constant, in every block: together 0.5 GB for variant T at 800 x 1280.
    row_distance = tiles.row_distance + 0 * query.shape[0]
    bias = _bias(proj_bias, rpb, tiles, k).index_select(2, row_distance)
    weight = (logits + bias).softmax(-1).flatten(0, 1)

    values = _channels_to_end(value.flatten(0, 1)).reshape(-1, height, width, channels)
    values = values.index_select(2, tiles.columns)
    values = values.reshape(-1, height, tiles.tiles, slots * channels).transpose(1, 2)
    values = values.index_select(2, tiles.rows)
    values = values.reshape(-1, tiles.tiles, height, k * slots, channels)
    out = (weight @ values).reshape(-1, tiles.tiles, height, TILE * channels).transpose(1, 2)
    out = out.reshape(-1, height * tiles.tiles * TILE, channels).transpose(1, 2)
    out = out.reshape(-1, groups, channels, height, tiles.tiles * TILE)
    return out[..., :width]


def _channels_to_end(x: Tensor) -> Tensor:
    """[BG, C, H, W] to [BG, H * W, C].

    Engines are quick to transpose matrices, and to move whole blocks; so what could be one
    permutation of many axes is these two, one after the other.
    """
    return x.flatten(2).transpose(1, 2)


def _placed_projection(proj_weight: Tensor, k: int) -> Tensor:
    """The projection to the logits of all slots for each place, [TILE, S, K * slots]."""
    regions, slots = int(proj_weight.shape[1]), k + TILE - 1
    taps, inside = _taps_of_places(k)
    weight = proj_weight.reshape(k, k, regions).index_select(1, taps) * inside
    return weight.reshape(k, TILE, slots, regions).permute(1, 3, 0, 2).flatten(2)


def _bias(proj_bias: Tensor, rpb: Tensor, tiles: Tiling, k: int) -> Tensor:
    """All that is added to the logits, [G, tiles, K, TILE, K * slots], by row distance."""
    groups, slots = int(rpb.shape[0]), k + TILE - 1
    position = rpb.index_select(2, tiles.bias_columns).index_select(1, _rows_of_distances(k))
    position = position.reshape(groups, k, k, tiles.tiles, TILE, slots)
    own = proj_bias.reshape(k, k).index_select(1, tiles.tap_columns)
    bias = position + (own.reshape(k, tiles.tiles, TILE, slots) + tiles.mask)
    return bias.permute(0, 3, 1, 4, 2, 5).reshape(groups, tiles.tiles, k, TILE, k * slots)


# Made by numpy and once: so they are constants of a traced graph, and shared.
@functools.cache
def _taps_of_places(k: int) -> tuple[Tensor, Tensor]:
    """The tap of each place and slot, [TILE * slots], and whether there is one, [.., 1]."""
    tap = (np.arange(k + TILE - 1) - np.arange(TILE)[:, None]).ravel()
    inside = ((tap >= 0) & (tap < k)).astype(np.float32)[:, None]
    return torch.from_numpy(tap.clip(0, k - 1)), torch.from_numpy(inside)


@functools.cache
def _rows_of_distances(k: int) -> Tensor:
    """Rows of the position bias, [K * K]: row K - 1 - d + t for tap t, d rows off the first."""
    return torch.from_numpy((np.arange(k)[::-1, None] + np.arange(k)).ravel())
