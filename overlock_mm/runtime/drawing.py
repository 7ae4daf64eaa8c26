"""Drawing on pictures with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: On smaller pictures, names would hide what they name.
_SIDE = 360
#: Longest side of an enlarged picture: a strip of one pixel would otherwise take gigabytes.
_LONGEST_SIDE = 2000
_FONT_SIZE = 13


def colors_of(count: int) -> tuple[tuple[int, ...], ...]:
    """Colours for classes that have none; a class has the same in every picture."""
    colors = np.random.default_rng(0).integers(40, 230, (count, 3))
    return tuple(tuple(map(int, color)) for color in colors)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture to draw on, uint8 [H, W, 3].

    Args:
        image: [H, W, C]; of more than three channels the first three count. What is not uint8 is
            scaled to its range.
    """
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-12) * 255
    return np.ascontiguousarray(image.astype(np.uint8))


def enlarging_factor(image: np.ndarray) -> int:
    """How many times as large a picture is drawn: more than once if it is small."""
    short, long = sorted(image.shape[:2])
    return max(1, min(round(_SIDE / short), _LONGEST_SIDE // long))


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[Sequence[int]],
    masks: np.ndarray | None,
) -> Image.Image:
    """Boxes with a text each, over half-transparent masks."""
    canvas = as_rgb(image)
    if masks is not None:
        for mask, color in zip(masks, colors, strict=True):
            canvas[mask] = (canvas[mask] * 0.5 + np.asarray(color) * 0.5).astype(np.uint8)
    factor, drawn = _enlarged(canvas)
    draw = ImageDraw.Draw(drawn)
    for box, text, color in zip(boxes * factor, texts, colors, strict=True):
        fill = tuple(map(int, color))
        draw.rectangle([*map(float, box)], outline=fill, width=2)
        _text(draw, (float(box[0]) + 2, float(box[1]) + 2), text, fill)
    return drawn


def draw_label_map(
    image: np.ndarray,
    label_map: np.ndarray,
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> Image.Image:
    """The picture below the colours of its classes, with the name of each."""
    canvas = as_rgb(image).astype(np.float32)
    labels = np.unique(label_map)
    for label in labels[labels < len(palette)]:
        where = label_map == label
        canvas[where] = canvas[where] * 0.5 + np.asarray(palette[label], np.float32) * 0.5
    factor, drawn = _enlarged(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for label in labels[labels < min(len(palette), len(classes))]:
        rows, columns = np.nonzero(label_map == label)
        # A pixel of the class: the middle of a ring would lie outside of it.
        middle = len(rows) // 2
        place = float(columns[middle]) * factor, float(rows[middle]) * factor
        _text(draw, place, classes[label], tuple(map(int, palette[label])))
    return drawn


def draw_lines(image: np.ndarray, lines: Sequence[str]) -> Image.Image:
    """Lines of text in the upper left corner."""
    _, drawn = _enlarged(as_rgb(image))
    draw = ImageDraw.Draw(drawn)
    for i, line in enumerate(lines):
        _text(draw, (4.0, 4.0 + i * (_FONT_SIZE + 5)), line, (30, 30, 30))
    return drawn


def _enlarged(image: np.ndarray) -> tuple[int, Image.Image]:
    factor = enlarging_factor(image)
    drawn = Image.fromarray(image)
    return factor, drawn.resize((drawn.width * factor, drawn.height * factor))


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: tuple[int, ...]
) -> None:
    """White on the colour of the class."""
    font = ImageFont.load_default(_FONT_SIZE)
    draw.rectangle(draw.textbbox(place, text, font=font), fill=fill)
    draw.text(place, text, fill=(255, 255, 255), font=font)
