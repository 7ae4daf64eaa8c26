"""A figure of dynamic kernels and their windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from overlock_mm.analysis.contmix_kernels import Box, ContMixKernels
from overlock_mm.analysis.explorer import AFFINITY_MAP, WEIGHT_MAP
from overlock_mm.analysis.figures import bare, figure_style, new_figure, row_label

#: Colors of the token and of the windows of both kernels; the explorer's page has the same.
_TOKEN, _SMALL, _LARGE = 'white', '#ffb000', '#41c7ff'


def draw_kernels(picture: np.ndarray, blocks: Sequence[ContMixKernels], group: int) -> Figure:
    """Draw a row for each block: the picture with the windows, both kernels, the affinities.

    Args:
        picture: uint8 RGB [H, W, 3], of the size of the image that the network was given.
        blocks: Results of :func:`contmix_kernels` for one position and several blocks.
        group: Whose kernels to draw; all blocks must have it.
    """
    aspect = picture.shape[1] / picture.shape[0]
    with figure_style():
        figure = new_figure(2.0 * aspect + 8.3, 2.2 * len(blocks) + 0.3)
        axes = figure.subplots(
            len(blocks), 4, squeeze=False, gridspec_kw={'width_ratios': [aspect, 1, 1, 1]}
        )
        for row, kernels in zip(axes, blocks, strict=True):
            _draw_place(row[0], picture, kernels)
            row_label(row[0], f'{kernels.block}, group {group}')
            for ax, weights, window in zip(row[1:3], kernels.kernels, kernels.windows, strict=True):
                _draw_weights(figure, ax, weights[group].cpu().numpy(), window, kernels.token)
            _draw_affinity(figure, row[3], kernels.affinity[group].cpu().numpy())
        titles = ('Windows', 'Small kernel, %', 'Large kernel, %', 'Affinity to the regions')
        for ax, title in zip(axes[0], titles, strict=True):
            ax.set_title(title)
    return figure


def _draw_place(ax: Axes, picture: np.ndarray, kernels: ContMixKernels) -> None:
    bare(ax).imshow(picture)
    boxes = (*kernels.window_boxes[::-1], kernels.token_box)
    for box, color in zip(boxes, (_LARGE, _SMALL, _TOKEN), strict=True):
        _outline(ax, box, 'black', 2.6)
        _outline(ax, box, color, 1.3)


def _draw_weights(
    figure: Figure, ax: Axes, weights: np.ndarray, window: Box, token: tuple[int, int]
) -> None:
    image = bare(ax).imshow(100 * weights, cmap=WEIGHT_MAP)
    left, top = window[:2]
    row, column = token
    ax.add_patch(
        Rectangle(
            (column - left - 0.5, row - top - 0.5), 1, 1, fill=False, edgecolor=_TOKEN, linewidth=1
        )
    )
    _scale(figure, image, ax)


def _draw_affinity(figure: Figure, ax: Axes, affinity: np.ndarray) -> None:
    limit = np.abs(affinity).max()
    image = bare(ax).imshow(affinity, cmap=AFFINITY_MAP, vmin=-limit, vmax=limit)
    _scale(figure, image, ax)


def _scale(figure: Figure, image: AxesImage, ax: Axes) -> None:
    bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)


def _outline(ax: Axes, box: Box, color: str, width: float) -> None:
    left, top, right, bottom = box
    # Pixel centres have whole coordinates.
    ax.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=color,
            linewidth=width,
        )
    )
