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

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.ops.contmix.arguments import ContMixArguments

#: Tokens per tile along an axis. A larger tile copies each value less often and has more slots that
#: a token does not use.
TILE = 4


@dataclass(frozen=True)
class Band:
    """Tiles of one kind along an axis of the map; sizes may be traced.

    Attributes:
        count: Number of tiles, Nt.
        tile: Tokens of a tile, T.
        slots: Values that a tile meets, S.
        tokens: [Nt, T], places on the axis; those beyond the band are computed and not used.
        values: [Nt, S], places on the axis.
        distances: How far each token is from the first value of its window, [Nt, T], or [1, 1] if
            that is the same for all.
        shifts: Whether a window begins one slot after that of the token before.
    """

    count: Any
    tile: int
    slots: int
    tokens: Tensor
    values: Tensor
    distances: Tensor
    shifts: bool


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
    distances = torch.stack([token, token + (k - k // 2)])
    return Band(2, k // 2, k, tokens, torch.stack([tap, tap + (size - k)]), distances, False)


def _middle(size: Any, k: int) -> Band:
    windows = size - k + 1
    tile = min(TILE, windows) if isinstance(windows, int) else TILE
    count = (windows + tile - 1) // tile
    first = tile * torch.arange(count)[:, None]
    slots = k + tile - 1
    return Band(
        count=count,
        tile=tile,
        slots=slots,
        tokens=(first + torch.arange(tile) + k // 2).clamp(max=size - 1),
        values=(first + torch.arange(slots)).clamp(max=size - 1),
        distances=torch.full((1, 1), k // 2),
        shifts=tile > 1,
    )


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
            counts = (columns.count, rows.count, rows.tile, columns.tile)
            tokens = columns.count * rows.count * (rows.tile * columns.tile)
            place = (start + torch.arange(tokens).reshape(counts)).permute(0, 3, 1, 2)
            regions.append(place.reshape(columns.count * columns.tile, rows.count * rows.tile))
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
    query, key, value, proj_weight, proj_bias, rpb, k, scale = arguments
    groups, query_channels = int(query.shape[1]), int(query.shape[2])
    channels = int(value.shape[2])
    height, width = tiles.size

    queries = _channels_to_end(query)
    values = _channels_to_end(value).reshape(-1, height, width, channels)
    kernels = (key.flatten(0, 1) @ (proj_weight * scale).t()).reshape(-1, query_channels, k, k)
    row_bands, column_bands = tiles.bands
    outs = []
    for columns in column_bands:
        # Engines are quick to move whole blocks: first pixels, then the columns of a tile.
        of_columns = values.index_select(2, columns.values.flatten())
        of_columns = of_columns.reshape(-1, height, columns.count, columns.slots * channels)
        of_columns = of_columns.transpose(1, 2)
        for rows in row_bands:
            tile, slots = rows.tile * columns.tile, rows.slots * columns.slots
            pixels = rows.tokens[..., None] * width + columns.tokens[:, None, None]
            kernel = _in_slots(kernels, rows, columns, 0.0)
            length = int(kernel.shape[-1])
            logits = queries.index_select(1, pixels.flatten()) @ kernel
            logits = logits.reshape(-1, groups, columns.count, rows.count, tile * length)
            logits = logits + _bias(proj_bias, rpb, rows, columns)
            weight = _shifted(logits.reshape(-1, tile, length).softmax(-1), rows, columns)
            met = of_columns.index_select(2, rows.values.flatten())
            out = weight @ met.reshape(-1, slots, channels)
            outs.append(out.reshape(-1, columns.count * rows.count * tile, channels))
    out = torch.cat(outs, 1).index_select(1, tiles.order).transpose(1, 2)
    return out.reshape(-1, groups, channels, height, width)


def _channels_to_end(x: Tensor) -> Tensor:
    """[B, G, C, H, W] to [BG, H * W, C]."""
    return x.flatten(0, 1).flatten(2).transpose(1, 2)


def _in_slots(x: Tensor, rows: Band, columns: Band, fill: float) -> Tensor:
    """[..., K, K] to one row of slots, as if the window began with the tile.

    Where columns shift, there is one slot more: see :func:`_shifted`.
    """
    k = int(x.shape[-1])
    x = F.pad(x, (0, columns.slots - k, 0, rows.slots - k), value=fill).flatten(-2)
    return F.pad(x, (0, 1), value=fill) if columns.shifts else x


def _bias(proj_bias: Tensor, rpb: Tensor, rows: Band, columns: Band) -> Tensor:
    """All that is added to the logits, [G, Nc or 1, Nr or 1, Tr * Tc * slots].

    It is small, as it is the same for all tiles of a middle. It follows from constants, so that
    runtimes compute it once.
    """
    groups, k = int(rpb.shape[0]), (int(rpb.shape[-1]) + 1) // 2
    shape = [groups]
    for axis, band in enumerate((rows, columns), start=1):
        place = (k - 1 - band.distances)[..., None] + torch.arange(k)
        rpb = rpb.index_select(axis, place.flatten())
        shape += place.shape
    bias = rpb.reshape(shape) + proj_bias.reshape(k, 1, 1, k)
    bias = _in_slots(bias.permute(0, 4, 1, 2, 5, 3, 6), rows, columns, -torch.inf)
    return bias.expand(-1, -1, -1, rows.tile, columns.tile, -1).flatten(3)


def _shifted(weight: Tensor, rows: Band, columns: Band) -> Tensor:
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
