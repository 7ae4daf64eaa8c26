"""Synthetic data sets, and checks of any data set before a run."""

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
