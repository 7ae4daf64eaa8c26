"""Draws one scene of the synthetic data set: a picture with its exact ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .outlines import OUTLINES, FloatArray
from .textures import (
    BACKGROUND_PATTERNS,
    SHAPE_PATTERNS,
    background_colours,
    pattern,
    shape_colour,
)

CLASSES = tuple(OUTLINES)

# Samples per pixel and axis. Odd, so that of 9 samples never two surfaces hold half each.
_SAMPLES = 3
_MIN_SIDE = 64
# An instance stays if this part of its whole outline is seen, and at least this area in units of
# the shorter image side squared (150 pixels of a side of 128).
_MIN_VISIBLE_PART = 0.5
_MIN_VISIBLE_AREA = 150 / 128**2
_MAX_TRIES = 200


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        masks: The visible part of each instance, bool [N, H, W]: the pixels of which it covers
            at least half. Masks never overlap and none is empty; back to front.
        labels: Index of each instance in ``CLASSES``, int64 [N].
        semantic: Label map as in ADE20K, uint8 [H, W]: 0 for pixels of which no surface covers
            half (to be ignored), 1 for background, ``label + 2`` for an instance.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    semantic: NDArray[np.uint8]

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Tight boxes of the masks, int64 [N, 4]: x1, y1, x2, y2 in pixels, the ends exclusive."""
        columns, rows = np.any(self.masks, axis=1), np.any(self.masks, axis=2)
        height, width = self.masks.shape[1:]
        return np.stack(
            [
                columns.argmax(axis=1),
                rows.argmax(axis=1),
                width - columns[:, ::-1].argmax(axis=1),
                height - rows[:, ::-1].argmax(axis=1),
            ],
            axis=1,
        )


@dataclass(frozen=True)
class _Piece:
    """An outline put on the canvas. Lengths are in samples.

    The fields are arrays over a window of the canvas that may reach beyond its border.
    """

    label: int
    radius: float
    top: int
    left: int
    u: FloatArray
    v: FloatArray
    distance: FloatArray

    def crop(
        self, canvas: tuple[int, int], shift: tuple[int, int] = (0, 0)
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return where the window, moved by ``shift``, overlaps the canvas, in both.

        They always meet: the centre lies in the canvas and ``shift`` is less than a radius.
        """
        on_canvas, in_window = [], []
        for start, side, limit in zip(
            (self.top + shift[0], self.left + shift[1]), self.distance.shape, canvas, strict=True
        ):
            first, last = max(start, 0), min(start + side, limit)
            on_canvas.append(slice(first, last))
            in_window.append(slice(first - start, last - start))
        return (on_canvas[0], on_canvas[1]), (in_window[0], in_window[1])


def _draw_piece(
    rng: np.random.Generator,
    label: int,
    canvas: tuple[int, int],
    diameters: tuple[float, float],
) -> _Piece:
    """Put an outline of random form, size, turn and place on the canvas."""
    outline = OUTLINES[CLASSES[label]](rng)
    radius = 0.5 * min(canvas) * rng.uniform(*diameters)
    turn = rng.uniform(0, 2 * math.pi)
    # Up to 0.3 of a radius may lie beyond the border.
    margin = 0.7 * radius
    centre_y, centre_x = (rng.uniform(margin, side - margin) for side in canvas)

    reach = math.ceil(radius) + 2 * _SAMPLES
    top, left = int(centre_y) - reach, int(centre_x) - reach
    steps = np.arange(2 * reach + 1, dtype=np.float32) + 0.5
    y, x = np.meshgrid(steps + (top - centre_y), steps + (left - centre_x), indexing='ij')
    u = (math.cos(turn) * x + math.sin(turn) * y).astype(np.float32)
    v = (math.cos(turn) * y - math.sin(turn) * x).astype(np.float32)
    distance = outline(u / radius, v / radius) * radius
    return _Piece(label, radius, top, left, u, v, distance.astype(np.float32))


def _lay_out(
    rng: np.random.Generator,
    labels: NDArray[np.int64],
    canvas: tuple[int, int],
    diameters: tuple[float, float],
) -> tuple[list[_Piece], NDArray[np.int16]]:
    """Place one piece per label, each in front of those before.

    Returns:
        The pieces, and the piece that is seen at each sample, int16 with -1 for the background.
    """
    smallest = _MIN_VISIBLE_AREA * min(canvas) ** 2
    owner = np.full(canvas, -1, np.int16)
    pieces: list[_Piece] = []
    needed: list[float] = []
    for index, label in enumerate(labels.tolist()):
        for _ in range(_MAX_TRIES):
            piece = _draw_piece(rng, label, canvas, diameters)
            inside = piece.distance < 0
            target, source = piece.crop(canvas)
            trial = owner.copy()
            trial[target][inside[source]] = index
            least = max(_MIN_VISIBLE_PART * np.count_nonzero(inside), smallest)
            seen = np.bincount(trial[trial >= 0], minlength=index + 1)
            if np.all(seen >= [*needed, least]):
                break
        else:
            raise RuntimeError(
                f'instance {index + 1} of {len(labels)} found no place in {_MAX_TRIES} tries '
                'where it and those behind it stay visible; ask for fewer or smaller instances'
            )
        owner = trial
        pieces.append(piece)
        needed.append(least)
    return pieces, owner


def _lerp(first: FloatArray, second: FloatArray, weight: FloatArray) -> FloatArray:
    return first + (second - first) * weight[..., None]


def _paint_background(
    rng: np.random.Generator, canvas: tuple[int, int], colours: FloatArray
) -> FloatArray:
    height, width = canvas
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing='ij'
    )
    turn = rng.uniform(0, 2 * math.pi)
    u = np.float32(math.cos(turn)) * x + np.float32(math.sin(turn)) * y
    v = np.float32(math.cos(turn)) * y - np.float32(math.sin(turn)) * x
    kind = str(rng.choice(BACKGROUND_PATTERNS))
    return _lerp(colours[0], colours[1], pattern(rng, kind, u, v, 0.16 * min(canvas)))


def _shade(
    piece: _Piece, bevel: float, light: tuple[float, float, float]
) -> tuple[FloatArray, FloatArray]:
    """Diffuse and specular light, float32 each, on a surface that rises over ``bevel`` samples."""
    inward = np.clip(-piece.distance / bevel, 0, 1)
    relief = 0.6 * bevel * np.sqrt(1 - (1 - inward) ** 2)
    slope_y, slope_x = np.gradient(relief)
    normal = np.stack([-slope_x, -slope_y, np.ones_like(relief)])
    normal /= np.linalg.norm(normal, axis=0)
    facing = light[0] * normal[0] + light[1] * normal[1] + light[2] * normal[2]
    mirrored = 2 * facing * normal[2] - light[2]
    return np.clip(facing, 0, 1), np.clip(mirrored, 0, 1) ** 12


def _paint_piece(
    rng: np.random.Generator,
    image: FloatArray,
    piece: _Piece,
    colour: FloatArray,
    light: tuple[float, float, float],
) -> None:
    """Paint the piece and its shadow over ``image`` [H, W, 3], in place."""
    canvas = (image.shape[0], image.shape[1])
    reach = rng.uniform(0.08, 0.16) * piece.radius
    shift = (round(-light[1] * reach), round(-light[0] * reach))
    target, source = piece.crop(canvas, shift)
    softness = max(0.5 * reach, _SAMPLES)
    shadow = 0.45 / (1 + np.exp(np.clip(piece.distance[source] / softness * 2, -30, 30)))
    image[target] *= 1 - shadow[..., None]

    kind = str(rng.choice(SHAPE_PATTERNS))
    weight = pattern(rng, kind, piece.u, piece.v, 0.45 * piece.radius)
    accent = colour * np.float32(rng.uniform(0.55, 0.8))
    if rng.random() < 0.4:
        accent = 0.6 * colour + np.float32(0.4)
    diffuse, gloss = _shade(piece, rng.uniform(0.2, 0.8) * piece.radius, light)
    surface = _lerp(colour, accent, weight) * (0.4 + 0.75 * diffuse[..., None])
    surface += np.float32(rng.uniform(0.1, 0.4)) * gloss[..., None]
    rim = np.clip(1 + piece.distance / (1.2 * _SAMPLES), 0, 1)
    surface *= 1 - np.float32(rng.uniform(0.2, 0.5)) * rim[..., None]

    target, source = piece.crop(canvas)
    inside = piece.distance[source] < 0
    image[target][inside] = surface[source][inside]


def _reduce(samples: NDArray) -> NDArray[np.float32]:
    """Mean over the samples of each pixel: [S*H, S*W, ...] to [H, W, ...]."""
    height, width = (side // _SAMPLES for side in samples.shape[:2])
    blocks = samples.reshape(height, _SAMPLES, width, _SAMPLES, *samples.shape[2:])
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def check_image_size(height: int, width: int) -> None:
    """Raise a ValueError unless the sides are integers of at least 64 pixels."""
    for name, side in (('height', height), ('width', width)):
        if not isinstance(side, int) or side < _MIN_SIDE:
            raise ValueError(
                f'{name} must be an integer of at least {_MIN_SIDE} pixels, got {side!r}: '
                'in smaller images the classes cannot be distinguished'
            )


def _check_scene(
    height: int,
    width: int,
    num_instances: tuple[int, int],
    diameters: tuple[float, float],
    label: int | None,
) -> None:
    check_image_size(height, width)
    if not 1 <= num_instances[0] <= num_instances[1]:
        raise ValueError(
            f'num_instances must be (least, most) with 1 <= least <= most, got {num_instances}'
        )
    if not 0.15 <= diameters[0] <= diameters[1] <= 1:
        raise ValueError(
            f'diameters must be (smallest, largest) with '
            f'0.15 <= smallest <= largest <= 1, got {diameters}'
        )
    if label is not None and not 0 <= label < len(CLASSES):
        raise ValueError(f'label must be in 0..{len(CLASSES) - 1}, got {label}')


def draw_scene(
    rng: np.random.Generator,
    height: int = 128,
    width: int = 160,
    num_instances: tuple[int, int] = (3, 6),
    diameters: tuple[float, float] = (0.19, 0.5),
    label: int | None = None,
) -> Scene:
    """Draw a picture of overlapping shapes.

    A piece that would hide too much is drawn again: of each instance at least half of the whole
    outline is visible, and at least 150 pixels at a shorter side of 128 (its square scales that).

    Args:
        rng: The only source of chance: a generator in the same state gives the same scene.
        height: Height in pixels, 64 or more.
        width: Width in pixels, 64 or more.
        num_instances: Least and greatest number of instances.
        diameters: Smallest and largest circumscribed diameter in units of the shorter side.
        label: Class of all instances, an index in ``CLASSES``; None draws one for each.

    Returns:
        The scene.

    Raises:
        ValueError: If an argument is out of its range.
        RuntimeError: If the instances do not fit into the image.

    Example:
        >>> draw_scene(np.random.default_rng(0)).image.shape
        (128, 160, 3)
    """
    _check_scene(height, width, num_instances, diameters, label)
    canvas = (height * _SAMPLES, width * _SAMPLES)
    count = int(rng.integers(num_instances[0], num_instances[1], endpoint=True))
    labels = rng.integers(len(CLASSES), size=count)
    if label is not None:
        labels[:] = label
    pieces, owner = _lay_out(rng, labels, canvas, diameters)

    azimuth = rng.uniform(0, 2 * math.pi)
    light = (0.6 * math.cos(azimuth), 0.6 * math.sin(azimuth), 0.8)
    colours = background_colours(rng)
    image = _paint_background(rng, canvas, colours)
    for piece in pieces:
        colour = shape_colour(rng, colours)
        colours = np.concatenate([colours, colour[None]])
        _paint_piece(rng, image, piece, colour, light)
    pixels = _reduce(image) + rng.normal(0, 0.012, (height, width, 1)).astype(np.float32)

    masks = np.stack([_reduce(owner == index) >= 0.5 for index in range(count)])
    semantic = (_reduce(owner == -1) >= 0.5).astype(np.uint8)
    for mask, value in zip(masks, labels + 2, strict=True):
        semantic[mask] = value
    return Scene((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8), masks, labels, semantic)
