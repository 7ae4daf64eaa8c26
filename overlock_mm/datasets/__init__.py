"""The embedded data set, which is drawn and not downloaded."""

from .scene import Scene, draw_scene
from .shapes import (
    METAINFO,
    SEMANTIC_METAINFO,
    scene_rng,
    write_classification,
    write_shapes,
)

__all__ = [
    'METAINFO',
    'SEMANTIC_METAINFO',
    'Scene',
    'draw_scene',
    'scene_rng',
    'write_classification',
    'write_shapes',
]
