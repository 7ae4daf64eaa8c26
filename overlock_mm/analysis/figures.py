"""Figures of receptive fields and activation maps, drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from overlock_mm.utils.files import replacing

#: Suffixes that :func:`save_figure` writes.
FIGURE_SUFFIXES = ('.png', '.jpg', '.pdf', '.svg')
#: Color map of contributions, from none to most, dark where there is little.
FIELD_MAP = 'magma'
#: Color map of activations over a picture.
ACTIVATION_MAP = 'turbo'
_INK = '#222222'
_DPI = 150


@contextmanager
def figure_style() -> Iterator[None]:
    """Return the common style of all figures."""
    style: Any = {
        'font.family': 'DejaVu Sans',
        'font.size': 9,
        'axes.titlesize': 10,
        'axes.edgecolor': '#bbbbbb',
        'axes.linewidth': 0.6,
        'text.color': _INK,
        'axes.labelcolor': _INK,
        'xtick.color': _INK,
        'ytick.color': _INK,
    }
    with mpl.rc_context(style):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of the given size in inches that draws into memory."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout='constrained', facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format of the suffix."""
    with replacing(path) as partial:
        figure.savefig(partial, bbox_inches='tight', pad_inches=0.06)


def bare(axes: Axes) -> Axes:
    """Return the axes without ticks, for a picture."""
    axes.set(xticks=[], yticks=[])
    return axes


def draw_field(axes: Axes, scores: np.ndarray) -> AxesImage:
    """Scores [S, S], 0 to 1; the colours follow their square root, as most of them are small."""
    return axes.imshow(scores, cmap=FIELD_MAP, norm=PowerNorm(0.5, vmin=0, vmax=1))


def mark_square(axes: Axes, centre: float, side: int, label: str) -> None:
    """Outline a centred square of the given side and write its name above its left corner."""
    start = centre - side / 2
    axes.add_patch(
        Rectangle((start, start), side, side, fill=False, edgecolor='white', linewidth=0.8)
    )
    axes.annotate(
        label,
        (start, start),
        xytext=(0, 1.5),
        textcoords='offset points',
        ha='left',
        va='bottom',
        color='white',
        fontsize=6.5,
    )


def overlay(axes: Axes, picture: np.ndarray, heat: np.ndarray) -> None:
    """A heat map [H, W], 0 to 1, over a picture [H, W, 3]; where it is low the picture shows."""
    grey = picture.astype(float).mean(-1, keepdims=True).repeat(3, -1) / 255
    colors = mpl.colormaps[ACTIVATION_MAP](heat)[..., :3]
    # Some colour everywhere, so that the map reads as one; more where it is high.
    alpha = (0.35 + 0.4 * heat)[..., None]
    axes.imshow((1 - alpha) * grey + alpha * colors, interpolation='bilinear')


def row_label(axes: Axes, text: str) -> None:
    """The name of a row, at the left of its first axes."""
    axes.set_ylabel(text, fontsize=10, labelpad=6)


def grid(figure: Figure, rows: int, columns: int, ratios: Sequence[float] = ()) -> np.ndarray:
    """Return the axes [rows, columns] without ticks."""
    axes = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={'width_ratios': ratios} if ratios else None
    )
    for one in axes.ravel():
        bare(one)
    return axes
