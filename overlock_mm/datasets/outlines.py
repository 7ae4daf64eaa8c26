"""The five outlines of the synthetic data set, as signed distances.

An outline is a function of two coordinate arrays that gives the signed distance to its border:
negative inside, zero on the border, positive outside. In its own coordinates it fits into the
unit circle around the origin. One distance field serves for the exact mask (``distance < 0``),
for the bevel that shading needs and for a soft shadow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Outline = Callable[[FloatArray, FloatArray], FloatArray]

# How far the corners of a polygon are rounded, in units of its circumscribed radius.
_CORNER_RADIUS = 0.06


def _ellipse_distance(x: FloatArray, y: FloatArray, short_axis: float) -> FloatArray:
    """First-order distance to the ellipse with half axes 1 and ``short_axis``.

    Its zero set is the exact ellipse; away from it the value is that of f / |grad f|, which is
    close enough to a distance for shading.
    """
    scaled = np.maximum(np.hypot(x, y / short_axis), 1e-6)
    slope = np.maximum(np.hypot(x, y / short_axis**2), 1e-6)
    return scaled * (scaled - 1) / slope


def _polygon_distance(x: FloatArray, y: FloatArray, vertices: FloatArray) -> FloatArray:
    """Exact signed distance to a simple polygon with ``vertices`` [n, 2] of either orientation."""
    squared = np.full(x.shape, np.inf, np.float32)
    winding = np.zeros(x.shape, np.int8)
    for (ax, ay), (bx, by) in zip(
        vertices.tolist(), np.roll(vertices, -1, axis=0).tolist(), strict=True
    ):
        edge_x, edge_y = bx - ax, by - ay
        to_x, to_y = x - ax, y - ay
        along = np.clip((to_x * edge_x + to_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        squared = np.minimum(squared, (to_x - edge_x * along) ** 2 + (to_y - edge_y * along) ** 2)
        side = edge_x * to_y - edge_y * to_x
        winding += (ay <= y) & (y < by) & (side > 0)
        winding -= (by <= y) & (y < ay) & (side < 0)
    distance = np.sqrt(squared)
    return np.where(winding != 0, -distance, distance)


def _polygon(vertices: FloatArray) -> Outline:
    """Return the polygon with rounded corners; ``vertices`` [n, 2] lie in the unit circle."""
    shrunk = vertices * (1 - _CORNER_RADIUS)
    return lambda x, y: _polygon_distance(x, y, shrunk) - _CORNER_RADIUS


def _on_circle(angles: FloatArray, radii: float | FloatArray) -> FloatArray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radii, (-1, 1))


def _ellipse(rng: np.random.Generator) -> Outline:
    short_axis = rng.uniform(0.65, 1.0)
    return lambda x, y: _ellipse_distance(x, y, short_axis)


def _rectangle(rng: np.random.Generator) -> Outline:
    half_angle = math.atan(rng.uniform(0.5, 1.0))
    corners = np.array([half_angle, math.pi - half_angle, math.pi + half_angle, -half_angle])
    return _polygon(_on_circle(corners, 1.0))


def _ring(rng: np.random.Generator) -> Outline:
    short_axis = rng.uniform(0.8, 1.0)
    half_width = rng.uniform(0.17, 0.24)
    return lambda x, y: np.abs(_ellipse_distance(x, y, short_axis) + half_width) - half_width


def _star(rng: np.random.Generator) -> Outline:
    angles = np.arange(10) * (math.pi / 5)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.42, 0.52))
    return _polygon(_on_circle(angles, radii))


def _triangle(rng: np.random.Generator) -> Outline:
    angles = np.arange(3) * (2 * math.pi / 3) + rng.uniform(-0.22, 0.22, size=3)
    return _polygon(_on_circle(angles, 1.0))


# In alphabetical order, so that labels agree with those that sorted class folders get.
OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    'ellipse': _ellipse,
    'rectangle': _rectangle,
    'ring': _ring,
    'star': _star,
    'triangle': _triangle,
}
