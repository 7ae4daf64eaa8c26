"""What an exported file says about itself: its task, its classes and what it does to pictures.

It is one JSON object in the file's metadata, under the key ``overlock_mm.model``. Whoever writes
files and whoever runs them share this module and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

KEY = 'overlock_mm.model'
#: Raised when a reader of the earlier format would misread the new one.
FORMAT = 1
#: Tasks for which `Predictor` returns results; files of other tasks return maps of features.
TASKS = ('classification', 'detection', 'segmentation')


class ModelFileError(ValueError):
    """A file cannot be run here; the message says why and what to do."""


@dataclass(frozen=True)
class ModelDescription:
    """See the module.

    Attributes:
        task: ``'classification'``, ``'detection'``, ``'segmentation'``, ``'features'`` or
            ``'backbone'``.
        classes: Names, in the order of the labels.
        palette: A colour for each class, red, green and blue.
        channels: Channels of the input.
        order: ``'RGB'`` or ``'BGR'`` of three channels, else ``'as given'``.
        size: (H, W) of the input; None takes all sizes.
        size_divisor: Divisor of both sides of the input.
        mean: Per channel, from 0 to 255; empty if the graph subtracts it or the model needs none.
        std: By channel.
        exif: Whether pictures are turned as their EXIF data say.
        steps: What is done to a picture, in this order; :mod:`overlock_mm.runtime.preprocessing`
            lists the steps. None: it has no form as such steps, and the caller prepares arrays.
        batch: Whether the first axis is free.
        head: What the outputs mean: ``scores`` (``'softmax'`` or ``'sigmoid'``), ``threshold`` of a
            score or of a mask, ``max_detections``, ``masks`` (``'box'`` or ``'image'``).
        config: Name of the config.
        checkpoint_sha256: Hash of the file of the weights.
        version: Version of the package that wrote the file.
        precision: ``'fp32'``, ``'fp16'`` or ``'int8'``.
    """

    task: str
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, ...], ...] = ()
    channels: int = 3
    order: str = 'RGB'
    size: tuple[int, int] | None = None
    size_divisor: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    exif: bool = True
    steps: tuple[Mapping[str, Any], ...] | None = ()
    batch: bool = True
    head: Mapping[str, Any] = field(default_factory=dict)
    config: str = ''
    checkpoint_sha256: str = ''
    version: str = ''
    precision: str = 'fp32'

    def to_json(self) -> str:
        """One line of JSON, with the number of the format."""
        return json.dumps({'format': FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, path: str = 'The file') -> ModelDescription:
        """The description in a line of JSON.

        Args:
            text: The result of :meth:`to_json`.
            path: For messages.

        Raises:
            ModelFileError: It is of a newer format, or damaged.
        """
        try:
            content = dict(json.loads(text))
            version = int(content.pop('format'))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f'The metadata of {path} are damaged ({error}). Export the model again.'
            ) from error
        if version > FORMAT:
            raise ModelFileError(
                f'{path} is of format {version}, and this overlock_mm reads up to {FORMAT}. '
                'Remedy: pip install --upgrade overlock_mm.'
            )
        known = {each.name for each in fields(cls)}
        if 'task' not in content or not known >= set(content):
            unknown = ', '.join(sorted(set(content) - known)) or 'no task'
            raise ModelFileError(
                f'The metadata of {path} are damaged ({unknown}). Export the model again.'
            )
        return cls(**{name: _frozen(value) for name, value in content.items()})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: str) -> ModelDescription:
        """The description in a file's metadata.

        Raises:
            ModelFileError: There is none, or :meth:`from_json` refuses it.
        """
        if KEY not in metadata:
            if 'overlock_mm' in metadata:
                remedy = 'It was written by an older overlock_mm: export it again with this one.'
            else:
                remedy = 'Files of tools/deployment/export_onnx.py have them; others have not.'
            raise ModelFileError(
                f'{path} holds no metadata of overlock_mm, which say how pictures are prepared '
                f'and what the outputs mean. {remedy}'
            )
        return cls.from_json(metadata[KEY], path)


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, so that a description that was read equals the one written."""
    if isinstance(value, list):
        return tuple(_frozen(each) for each in value)
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return value
