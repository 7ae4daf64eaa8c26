"""What a config says about pictures, as the metadata of an exported file."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from overlock_mm.export.parts import Exportable
from overlock_mm.models.overlock import image_channels
from overlock_mm.runtime.description import ModelDescription
from overlock_mm.utils.config import innermost_dataset
from overlock_mm.version import __version__

#: Steps that do nothing to the values of a picture.
_WITHOUT_EFFECT = ('LoadAnnotations', 'PackDetInputs', 'PackInputs', 'PackSegInputs')


def describe(
    cfg: Config,
    part: Exportable,
    *,
    classes: tuple[str, ...],
    palette: tuple[tuple[int, ...], ...],
    size: tuple[int, int] | None,
    normalises: bool,
    config: str,
    checkpoint_sha256: str,
) -> ModelDescription:
    """The description of a file.

    Args:
        cfg: The model's config.
        part: What is exported.
        classes: Their names.
        palette: Their colours.
        size: (H, W) of the graph, or None.
        normalises: Whether the graph subtracts the mean itself.
        config: Name of the config.
        checkpoint_sha256: Hash of the file of the weights.
    """
    preprocessor = cfg.model.data_preprocessor
    channels = image_channels(part)
    mean = tuple(preprocessor.get('mean') or ())
    steps = None if _unknown_steps(cfg) else _steps(cfg, size, mean if normalises else ())
    turned = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    return ModelDescription(
        task=part.task,
        classes=classes,
        palette=palette,
        channels=channels,
        order=('RGB' if turned else 'BGR') if channels == 3 else 'as given',
        size=size,
        size_divisor=part.size_divisor,
        mean=() if normalises else mean,
        std=() if normalises else tuple(preprocessor.get('std') or ()),
        exif=_exif(cfg),
        steps=steps,
        head=part.head,
        config=config,
        checkpoint_sha256=checkpoint_sha256,
        version=__version__,
    )


def crop_of(cfg: Config) -> tuple[int, int] | None:
    """(H, W) that the test pipeline cuts out of pictures, if it does."""
    for step in _pipeline(cfg):
        if _name(step) == 'CenterCrop':
            return _pair(step['crop_size'])
    return None


def _pipeline(cfg: Config) -> list[Any]:
    loader = cfg.get('test_dataloader')
    return list(innermost_dataset(loader.dataset).pipeline) if loader else []


def _name(step: Any) -> str:
    kind = step['type']
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _pair(size: Any) -> tuple[int, int]:
    """(H, W) of a size that OpenMMLab gives as width and height, or as one number."""
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def _unknown_steps(cfg: Config) -> list[str]:
    known = ('LoadImageFromFile', 'Resize', 'ResizeEdge', 'ResizeToMultiple', 'CenterCrop', 'Pad')
    pipeline = _pipeline(cfg)
    names = [_name(step) for step in pipeline]
    unknown = [name for name in names if name not in (*known, *_WITHOUT_EFFECT)]
    unknown += [
        'Pad'
        for step in pipeline
        if _name(step) == 'Pad' and (step.get('pad_to_square') or step.get('padding_mode'))
    ]
    unknown += [
        'Resize'
        for step in pipeline
        if _name(step) == 'Resize' and not isinstance(step.get('scale'), (tuple, list))
    ]
    return unknown if pipeline else ['no test pipeline']


def _exif(cfg: Config) -> bool:
    loaders = [step for step in _pipeline(cfg) if _name(step) == 'LoadImageFromFile']
    color = (loaders[0].get('color_type') if loaders else None) or 'color'
    return color in ('color', 'grayscale')


def _steps(
    cfg: Config, size: tuple[int, int] | None, raw_mean: tuple[float, ...]
) -> tuple[dict[str, Any], ...]:
    steps: list[dict[str, Any]] = []
    for step in _pipeline(cfg):
        name = _name(step)
        how = dict(filter=step.get('interpolation', 'bilinear'), backend=step.get('backend', 'cv2'))
        if name == 'Resize' and size is not None and step.get('keep_ratio'):
            steps.append(dict(step='fit', size=size, **how))
        elif name == 'Resize' and step.get('keep_ratio'):
            steps.append(dict(step='resize_in', scale=tuple(step['scale']), **how))
        elif name == 'Resize':
            steps.append(dict(step='stretch', size=size or _pair(step['scale']), **how))
        elif name == 'ResizeEdge':
            edge = dict(edge=step.get('edge', 'short'), length=step['scale'])
            steps.append(dict(step='resize_edge', **edge, **how))
        elif name == 'ResizeToMultiple' and size is None:
            divisor = step.get('size_divisor', 32)
            steps.append(dict(step='resize_to_multiple', divisor=divisor, **how))
        elif name == 'CenterCrop':
            steps.append(dict(step='crop', size=_pair(step['crop_size'])))
        elif name == 'Pad':
            steps.append(_pad_of_pipeline(step, size))
    steps += _pads_of_batches(cfg, size, raw_mean)
    crop = crop_of(cfg)
    if size is not None and crop is not None and crop != size:
        how = dict(filter='bicubic', backend='pillow')
        steps.append(dict(step='stretch', size=size, **how))
    return tuple(steps)


def _pad_of_pipeline(step: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    value = step.get('pad_val', 0)
    value = value.get('img', 0) if isinstance(value, dict) else value
    value = tuple(value)[::-1] if isinstance(value, (tuple, list)) else value
    pad: dict[str, Any] = dict(step='pad', value=value, counts=True)
    if size is not None or step.get('size'):
        return dict(pad, size=size or _pair(step['size']))
    return dict(pad, divisor=step['size_divisor'])


def _pads_of_batches(
    cfg: Config, size: tuple[int, int] | None, raw_mean: tuple[float, ...]
) -> list[dict[str, Any]]:
    """What preprocessors add, which is beside normalised values."""
    preprocessor = cfg.model.data_preprocessor
    if crop_of(cfg) is not None:
        return []
    value = preprocessor.get('pad_value', preprocessor.get('pad_val', 0))
    if raw_mean:
        std = preprocessor['std']
        value = tuple(m + value * s for m, s in zip(raw_mean, std, strict=True))
    pad = dict(step='pad', value=value, counts=False, after=True)
    if size is not None:
        return [dict(pad, size=size)]
    test = preprocessor.get('test_cfg') or {}
    divisor = preprocessor.get('pad_size_divisor', test.get('size_divisor', 1))
    pads = [dict(pad, divisor=divisor)] if divisor > 1 else []
    return [dict(pad, size=tuple(test['size'])), *pads] if test.get('size') else pads
