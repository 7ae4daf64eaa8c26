"""One self-contained HTML page on which to explore the dynamic kernels of an image.

The page holds the queries, region keys and kernel parameters of each block, with 16 bits a number,
and computes affinities and kernels from them (``explorer_page/contmix.js``). They take a tenth of
the room of the kernels themselves, and less than the affinities.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overlock_mm.analysis.contmix_kernels import ContMixProjections
from overlock_mm.layers.contmix import KernelParameters

#: What a page holds at most, unless its blocks are named.
MAX_PAGE_BYTES = 10_000_000
#: Color maps of weights, from smallest to largest, and of affinities, from negative to positive.
WEIGHT_MAP, AFFINITY_MAP = 'viridis', 'RdBu_r'
#: Colours between which the page interpolates; with these, no colour is off by more than a shade.
_COLORS = 17
#: Decimal places of a weight in percent, unless the precision supports fewer.
PERCENT_DECIMALS = 2
_CODES = 2**16 - 1
_PAGE = Path(__file__).with_name('explorer_page')


@dataclass(frozen=True)
class PackedBlock:
    """A block as the page holds it.

    Args:
        content: Plain data for JSON.
        weight_error: How far a weight that the page computes may be from the module's.
        affinity_error: The same of affinities.
    """

    content: dict[str, Any]
    weight_error: float
    affinity_error: float


def pack_block(projections: ContMixProjections) -> PackedBlock:
    """Store a block's numbers with 16 bits each, and find out what that costs in precision.

    The errors are the largest over all weights and affinities of all tokens, not estimates. So
    many digits are shown that the error is at most half a unit of the last one.

    Raises:
        ValueError: A query, a key or a parameter is not finite.
    """
    groups, query_channels, height, width = projections.query.shape
    stored_query, query = _packed(projections.query.flatten(0, 1), projections.block)
    stored_key, key = _packed(projections.key.flatten(0, 1), projections.block)
    kernels, parameters = [], []
    for kernel in projections.parameters:
        stored_weight, weight = _packed(kernel.proj_weight, projections.block)
        stored_bias, bias = _packed(kernel.proj_bias[None], projections.block)
        stored_rpb, rpb = _packed(kernel.rpb, projections.block)
        kernels.append(
            {
                'size': kernel.size,
                'projWeight': stored_weight,
                'projBias': stored_bias,
                'rpb': stored_rpb,
            }
        )
        parameters.append(KernelParameters(kernel.size, weight, bias[0], rpb))
    shown = replace(
        projections,
        query=query.view_as(projections.query),
        key=key.view_as(projections.key),
        parameters=parameters,
    )
    affinity_error = _largest_difference(shown.affinity, projections.affinity)
    weight_error = max(map(_largest_difference, shown.kernels, projections.kernels))
    rows, columns = projections.edges()
    region_rows, region_columns = projections.region_spans()
    content = {
        'name': projections.block,
        'groups': groups,
        'queryChannels': query_channels,
        'regions': projections.key.shape[-1],
        'scale': projections.scale,
        'upsampled': projections.upsampled,
        'rowEdges': rows,
        'columnEdges': columns,
        'regionRows': region_rows,
        'regionColumns': region_columns,
        'percentDecimals': min(PERCENT_DECIMALS, _sure_decimals(100 * weight_error)),
        'affinityDecimals': min(
            _three_digits(projections.affinity.abs().max().item()), _sure_decimals(affinity_error)
        ),
        'query': stored_query,
        'key': stored_key,
        'kernels': kernels,
    }
    return PackedBlock(content, weight_error, affinity_error)


def build_page(
    picture: np.ndarray,
    projections: Mapping[str, ContMixProjections],
    image_name: str,
    subtitle: str,
    max_bytes: int | None = MAX_PAGE_BYTES,
) -> tuple[str, list[str]]:
    """Return the page as text.

    Args:
        picture: uint8 RGB [H, W, 3], of the size of the image that the network was given.
        projections: The result of :func:`project_contmix`, by name of the block.
        image_name: What to call the image.
        subtitle: Said below the title, such as the names of config and checkpoint.
        max_bytes: Blocks are left out evenly until the page is no larger; None keeps all.

    Returns:
        The HTML, and the names of the blocks in it.

    Raises:
        ValueError: No block fits into ``max_bytes``, or a block's numbers are not finite.
    """
    packed = [pack_block(one) for one in projections.values()]
    for count in range(len(packed), 0, -1):
        indices = np.linspace(0, len(packed) - 1, count).round().astype(int)
        blocks = [packed[i] for i in indices]
        page = _page(picture, blocks, image_name, subtitle)
        if max_bytes is None or len(page.encode()) <= max_bytes:
            return page, [block.content['name'] for block in blocks]
    height, width = picture.shape[:2]
    raise ValueError(
        f'A page of {max_bytes} bytes has no room for a single block of a {width} x {height} '
        'image. Make the image smaller.'
    )


def _page(
    picture: np.ndarray, blocks: Sequence[PackedBlock], image_name: str, subtitle: str
) -> str:
    height, width = picture.shape[:2]
    data = {
        'image': {'width': width, 'height': height, 'source': _data_address(picture)},
        'colors': {'weight': _colors(WEIGHT_MAP), 'affinity': _colors(AFFINITY_MAP)},
        'bound': _bound(blocks),
        'blocks': [block.content for block in blocks],
    }
    files = {name: (_PAGE / name).read_text(encoding='utf-8') for name in _files()}
    return Template(files['page.html']).substitute(
        title=escape(f'ContMix: {image_name}'),
        subtitle=escape(subtitle),
        image_name=escape(image_name),
        style=files['page.css'],
        script=files['contmix.js'] + '\n' + files['view.js'],
        data=_as_json(data),
    )


def _files() -> list[str]:
    return ['page.html', 'page.css', 'contmix.js', 'view.js']


def _bound(blocks: Sequence[PackedBlock]) -> str:
    """Return the page's sentence on precision."""
    weight = 100 * max((block.weight_error for block in blocks), default=0.0)
    affinity = max((block.affinity_error for block in blocks), default=0.0)
    return (
        'The page computes from queries, keys and parameters that are stored with 16 bits a '
        f'number. For this picture no weight is off by more than {_rounded_up(weight)} % of its '
        f'kernel’s sum, and no affinity by more than {_rounded_up(affinity)}.'
    )


def _rounded_up(value: float) -> str:
    """Round up to one digit that is not zero, such as 0.003 for 0.0021."""
    if value == 0:
        return '0'
    decimals = -math.floor(math.log10(value))
    return f'{math.ceil(value * 10.0**decimals) / 10.0**decimals:.{max(0, decimals)}f}'


def _packed(values: Tensor, block: str) -> tuple[dict[str, str], Tensor]:
    """Encode rows [R, ...] with 16 bits between each row's smallest and largest value.

    The decoded values are float64, as the page's.
    """
    rows = values.detach().flatten(1).cpu().double().numpy()
    if not np.isfinite(rows).all():
        raise ValueError(
            f'{block} has queries, keys or parameters that are not finite. Was the checkpoint '
            'trained in half precision, or the image not normalised?'
        )
    low = rows.min(1, keepdims=True).astype(np.float32)
    step = ((rows.max(1, keepdims=True) - low) / _CODES).astype(np.float32)
    with np.errstate(divide='ignore', invalid='ignore'):
        codes = np.where(step > 0, (rows - low) / step, 0)
    codes = codes.round().clip(0, _CODES).astype('<u2')
    stored = {
        'low': _base64(low.astype('<f4')),
        'step': _base64(step.astype('<f4')),
        'codes': _base64(codes),
    }
    decoded = low.astype(np.float64) + step.astype(np.float64) * codes
    return stored, torch.from_numpy(decoded).view(values.shape)


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return (one - other.cpu()).abs().max().item()


def _three_digits(largest: float) -> int:
    """Return digits after the point that show the largest value with three digits in all."""
    return max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 2


def _sure_decimals(error: float) -> int:
    """Return digits after the point such that the error is at most half a unit of the last one."""
    return max(0, math.floor(-math.log10(2 * error))) if error > 0 else PERCENT_DECIMALS


def _colors(name: str) -> list[list[int]]:
    """Return evenly spaced colours of a matplotlib colour map, RGB from 0 to 255."""
    colors = mpl.colormaps[name](np.linspace(0, 1, _COLORS))[:, :3]
    return (255 * colors).round().astype(int).tolist()


def _data_address(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'JPEG', quality=92)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _as_json(content: Any) -> str:
    # Within a script element no < may be read as the beginning of a tag.
    return json.dumps(content, allow_nan=False).replace('<', '\\u003c')
