"""Colours and patterns for the synthetic data set."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image

from .outlines import FloatArray

BACKGROUND_PATTERNS = ('gradient', 'noise', 'stripes', 'checker', 'blobs')
SHAPE_PATTERNS = ('plain', 'gradient', 'noise', 'stripes', 'checker', 'dots')


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> FloatArray:
    """Noise [H, W] in about [0, 1] that varies over ``cell`` samples."""
    rows, columns = (math.ceil(side / cell) + 1 for side in shape)
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _waves(u: FloatArray, period: float) -> FloatArray:
    return np.sin(u * (2 * math.pi / period))


def _soft_step(signal: FloatArray, sharpness: float) -> FloatArray:
    """Push a signal around 0 towards 0 and 1."""
    return 0.5 + 0.5 * np.tanh(sharpness * signal)


def pattern(
    rng: np.random.Generator, kind: str, u: FloatArray, v: FloatArray, scale: float
) -> FloatArray:
    """Return a pattern with values in [0, 1].

    Args:
        rng: Draws the pattern's own parameters.
        kind: One of ``BACKGROUND_PATTERNS`` or ``SHAPE_PATTERNS``.
        u: First coordinate of each sample, float32 [H, W].
        v: Second coordinate of each sample, float32 [H, W].
        scale: Typical period of the pattern in units of the coordinates.

    Returns:
        float32 [H, W].

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    period = scale * rng.uniform(0.7, 1.4)
    if kind == 'plain':
        return np.zeros_like(u)
    if kind == 'gradient':
        ramp = u - u.min()
        return ramp / ramp.max()
    if kind == 'stripes':
        return _soft_step(_waves(u, period), rng.uniform(1.0, 4.0))
    if kind == 'checker':
        return _soft_step(_waves(u, 2 * period) * _waves(v, 2 * period), rng.uniform(2.0, 6.0))
    if kind == 'dots':
        return _soft_step(_waves(u, period) + _waves(v, period) - 1.1, 3.0)
    if kind in ('noise', 'blobs'):
        # Noise is isotropic: the size of a cell counts, not the direction of the axes.
        cell = period / math.hypot(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0])
        if kind == 'blobs':
            return _soft_step(_smooth_noise(rng, u.shape, 1.5 * cell) - 0.5, 8.0)
        octaves = [_smooth_noise(rng, u.shape, cell / 2**k) / 2**k for k in range(3)]
        return np.clip(sum(octaves) / 1.75, 0, 1)
    raise ValueError(
        f'kind must be one of {sorted({*BACKGROUND_PATTERNS, *SHAPE_PATTERNS})}, got {kind!r}'
    )


def background_colours(rng: np.random.Generator) -> FloatArray:
    """Two related, muted colours, float32 [2, 3] in [0, 1]."""
    hue, saturation, value = rng.random(), rng.uniform(0.08, 0.4), rng.uniform(0.3, 0.9)
    step = rng.uniform(0.1, 0.22) * (-1 if value > 0.6 else 1)
    first = colorsys.hsv_to_rgb(hue, saturation, value)
    second = colorsys.hsv_to_rgb((hue + rng.uniform(-0.1, 0.1)) % 1, saturation, value + step)
    return np.array([first, second], np.float32)


def shape_colour(rng: np.random.Generator, others: FloatArray) -> FloatArray:
    """Return the one of eight random vivid colours that is farthest from ``others`` [n, 3].

    Colours are independent of the class, so that only the outline reveals the class.
    """
    candidates = np.array(
        [
            colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(0.6, 1.0))
            for _ in range(8)
        ],
        np.float32,
    )
    distances = np.linalg.norm(candidates[:, None] - others[None], axis=2)
    return candidates[distances.min(axis=1).argmax()]
