"""ContMix in operators that ONNX has: matrix products and gathers, no loop over the taps.

Every token has a window of its own, which a matrix product does not know. So tokens are taken in
tiles whose windows overlap, and the values of a tile are copied once. Along each axis a map has two
kinds of tokens. In the middle a window begins one place after its neighbour's: ``TILE`` tokens make
a tile and meet ``K + TILE - 1`` values, the slots. The ``K // 2`` tokens at either end have the
same window: they are one tile and meet K values. Both axes together give four kinds of tiles.

The logits of a token are those of its taps, as if its window began with the tile; those of slots
beyond the window are minus infinity. After the softmax the weights move to their place: see
:func:`_shifted`.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments

#: Tokens per tile along an axis. A larger tile copies each value less often and has more slots that
#: a token does not use.
TILE = 4


class Kind(NamedTuple):
    """A kind of tile along an axis.

    Attributes:
        k: K, size of the window.
        tile: Tokens of a tile, T.
        at_end: Whether it is at an end of the axis, where all tokens have the same window.
    """

    k: int
    tile: int
    at_end: bool

    @property
    def slots(self) -> int:
        """Values that a tile meets, S."""
        return self.k if self.at_end else self.k + self.tile - 1

    @property
    def shifts(self) -> bool:
        """Whether a window begins one slot after that of the token before."""
        return not self.at_end and self.tile > 1

    @property
    def bias_places(self) -> np.ndarray:
        """Where the position bias of each token's first tap is, [2 or 1, T]."""
        if not self.at_end:
            return np.full((1, self.tile), self.k - 1 - self.k // 2)
        first = np.arange(self.tile)
        return self.k - 1 - np.stack([first, first + self.k - self.tile])


@dataclass(frozen=True)
class Band:
    """All tiles of one kind along an axis of the map; the size may be traced.

    Attributes:
        kind: Of its tiles.
        count: Number of tiles, N.
        tokens: [N, T], places on the axis; those beyond the band are computed and not used.
        values: [N, S], places on the axis.
    """

    kind: Kind
    count: Any
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True)
class Tiling:
    """The tiles of a map for a window size.

    Attributes:
        size: (H, W) of the map.
        bands: Those of the rows and those of the columns. Each pair is a region of the map.
        order: [H * W], the place of each token among the tokens of all regions.
    """

    size: tuple[Any, Any]
    bands: tuple[tuple[Band, Band], tuple[Band, Band]]
    order: Tensor


def _ends(size: Any, k: int) -> Band:
    """The tokens at both ends of an axis; see :func:`overlock_mm.ops.neighborhood_aggregate`."""
    token, tap = torch.arange(k // 2), torch.arange(k)
    tokens = torch.stack([token, token + (size - k // 2)])
    return Band(Kind(k, k // 2, True), 2, tokens, torch.stack([tap, tap + (size - k)]))


def _middle(size: Any, k: int) -> Band:
    windows = size - k + 1
    kind = Kind(k, min(TILE, windows) if isinstance(windows, int) else TILE, False)
    count = (windows + kind.tile - 1) // kind.tile
    first = kind.tile * torch.arange(count)[:, None]
    tokens = (first + torch.arange(kind.tile) + k // 2).clamp(max=size - 1)
    return Band(kind, count, tokens, (first + torch.arange(kind.slots)).clamp(max=size - 1))


def tiling(height: Any, width: Any, kernel_size: int) -> Tiling:
    """Tiles for a map of H x W and windows of K x K; under tracing both sizes stay variable."""
    k = kernel_size
    row_bands, column_bands = ((_ends(size, k), _middle(size, k)) for size in (height, width))
    # Where the tokens of the bands are among those of all regions, [columns, rows].
    places: list[Tensor] = []
    start: Any = 0
    for columns in column_bands:
        regions = []
        for rows in row_bands:
            tiles = (rows.kind.tile, columns.kind.tile)
            tokens = columns.count * rows.count * (tiles[0] * tiles[1])
            place = start + torch.arange(tokens).reshape(columns.count, rows.count, *tiles)
            place = place.permute(0, 3, 1, 2)
            regions.append(place.reshape(columns.count * tiles[1], rows.count * tiles[0]))
            start = start + tokens
        places.append(torch.cat(regions, 1))
    order = torch.cat(places)
    half = torch.arange(k // 2)
    for axis, size in enumerate((width, height)):
        middle = torch.arange(size - k + 1) + 2 * (k // 2)
        order = order.index_select(axis, torch.cat([half, middle, half + k // 2]))
    return Tiling((height, width), (row_bands, column_bands), order.t().flatten())


def contmix(arguments: ContMixArguments, tiles: Tiling) -> Tensor:
    """See :func:`overlock_mm.ops.contmix`; ``tiles`` are for its window and map size."""
    query, key, value, proj_weight, proj_bias, rpb, _, scale = arguments
    groups, channels = int(query.shape[1]), int(value.shape[2])
    height, width = tiles.size

    queries = _channels_to_end(query)
    values = _channels_to_end(value).reshape(-1, height, width, channels)
    keys = key.flatten(0, 1)
    # Slots without a tap take the last row.
    projection = torch.cat([proj_weight * scale, torch.zeros(1, int(proj_weight.shape[1]))])
    own_bias = torch.cat([proj_bias, torch.zeros(1)])
    position_bias = torch.cat([rpb.flatten(1), torch.full((groups, 1), -torch.inf)], 1)
    row_bands, column_bands = tiles.bands
    outs = []
    for columns in column_bands:
        # Engines are quick to move whole blocks: first pixels, then the columns of a tile.
        of_columns = values.index_select(2, columns.values.flatten())
        of_columns = of_columns.reshape(-1, height, columns.count, columns.kind.slots * channels)
        of_columns = of_columns.transpose(1, 2)
        for rows in row_bands:
            taps, places = _slots(rows.kind, columns.kind)
            # It follows from constants, so that runtimes compute it once.
            bias = position_bias.index_select(1, places.flatten()).reshape(groups, *places.shape)
            bias = (bias + own_bias.index_select(0, taps)).flatten(3)
            kernel = keys @ projection.index_select(0, taps).t()

            pixels = rows.tokens[..., None] * width + columns.tokens[:, None, None]
            logits = queries.index_select(1, pixels.flatten()) @ kernel
            logits = logits.reshape(-1, groups, columns.count, rows.count, int(bias.shape[-1]))
            weight = (logits + bias).reshape(-1, *places.shape[2:]).softmax(-1)
            weight = _shifted(weight, rows.kind, columns.kind)
            met = of_columns.index_select(2, rows.values.flatten())
            out = weight @ met.reshape(-1, int(weight.shape[-1]), channels)
            tokens = columns.count * rows.count * places.shape[2]
            outs.append(out.reshape(-1, tokens, channels))
    out = torch.cat(outs, 1).index_select(1, tiles.order).transpose(1, 2)
    return out.reshape(-1, groups, channels, height, width)


def _channels_to_end(x: Tensor) -> Tensor:
    """[B, G, C, H, W] to [BG, H * W, C]."""
    return x.flatten(0, 1).flatten(2).transpose(1, 2)


# Made by numpy and once: so they are constants of a traced graph, and shared.
@functools.cache
def _slots(rows: Kind, columns: Kind) -> tuple[Tensor, Tensor]:
    """What the slots of a tile are to a window that begins with the tile.

    Where columns shift, there is one slot more: see :func:`_shifted`.

    Returns:
        The tap of each slot, [slots], K * K for none; and the place of its position bias for each
        token, [Nc, Nr, Tr * Tc, slots], the number of places for none. Nc and Nr are 2 or 1,
        as all tiles of a middle are alike.
    """
    k, places = rows.k, 2 * rows.k - 1
    row, column = np.arange(rows.slots)[:, None], np.arange(columns.slots)
    inside = ((row < k) & (column < k)).ravel()
    taps = np.where(inside, (row * k + column).ravel(), k * k)
    first = rows.bias_places[:, :, None] * places + columns.bias_places[:, None, None]
    place = first[..., None] + (row * places + column).ravel()
    place = np.where(inside, place, places * places)
    place = place.reshape(*place.shape[:2], rows.tile * columns.tile, -1)
    if columns.shifts:
        taps = np.append(taps, k * k)
        place = np.pad(place, [(0, 0)] * 3 + [(0, 1)], constant_values=places * places)
    return torch.from_numpy(taps), torch.from_numpy(place)


def _shifted(weight: Tensor, rows: Kind, columns: Kind) -> Tensor:
    """Move the weights of each token to the slots of its window, [N, Tr * Tc, slots].

    In a tile that shifts along both axes token (i, j) begins i rows and j columns of slots later.
    Its weights end with zeros, enough for every shift. So a shift that grows from token to token is
    a matter of lengths: with one element more for each token and the end cut off, the same memory
    read in the old length has the weights of token j shifted by j.
    """
    slots, tile = rows.slots * columns.slots, rows.tile * columns.tile
    row = columns.tile * slots
    weight = weight.reshape(-1, rows.tile, weight.shape[1] * weight.shape[2] // rows.tile)
    if rows.shifts:
        more = row + columns.slots - int(weight.shape[-1])
        weight = F.pad(weight, (0, more)).flatten(1)[:, : rows.tile * row]
    elif columns.shifts:
        weight = weight[..., :row]
    return weight.reshape(-1, tile, slots)
