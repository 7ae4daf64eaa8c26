r"""Export a classifier, a segmentor or a detector to ONNX.

python tools/deployment/export_onnx.py configs/segmentation/upernet_overlock_t.py \
    upernet_t.pth upernet_t.onnx

The file holds the fused form in standard operators, takes batches of any size, and is put in
place after ONNX Runtime has given the results of PyTorch. ``docs/export.md`` says how to use it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from overlock_mm.checkpoint import check_compatible, read_checkpoint
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.export import ExportError, Normalised, check_request, export_onnx, exportable
from overlock_mm.utils.config import innermost_dataset, load_config
from overlock_mm.version import __version__

#: Sizes of the published evaluations (H, W).
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmseg': (512, 512), 'mmdet': (800, 1280)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a model to ONNX.')
    parser.add_argument('config', help='config file, for example one below configs/')
    parser.add_argument('checkpoint', help='checkpoint file with the weights')
    parser.add_argument('out', metavar='OUT.onnx')
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the images in pixels; default: 224 224 for a classifier, 512 512 for a '
        'segmentor, 800 1280 for a detector',
    )
    size.add_argument('--dynamic', action='store_true', help='one file for images of any size')
    parser.add_argument('--opset', type=int, default=17, help='17 (the default) to 20')
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='take RGB images in 0 to 255 and normalise them; without it the input is normalised',
    )
    parser.add_argument(
        '--features-only', action='store_true', help='of a detector, only backbone and neck'
    )
    parser.add_argument(
        '--no-check', action='store_true', help='do not compare with PyTorch in ONNX Runtime'
    )
    return parser.parse_args(argv)


def build_model(cfg: Config, content: dict[str, Any], checkpoint: str) -> nn.Module:
    """The model of a config with the weights of a checkpoint, in fused form."""
    weights = content['state_dict']
    model = MODELS.build(cfg.model)
    check_compatible(model, weights, checkpoint)
    model.load_state_dict(weights, strict=False)
    model.backbone.switch_to_deploy()
    return revert_sync_batchnorm(model)


def class_names(cfg: Config, content: dict[str, Any]) -> Sequence[str] | None:
    """Those of the data set that the weights come from, else of the config's."""
    sources = [content.get('meta', {}).get('dataset_meta')]
    if cfg.get('test_dataloader') is not None:
        dataset = innermost_dataset(cfg.test_dataloader.dataset)
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            sources += [dataset.get('metainfo'), registry.get(dataset.type).METAINFO]
    return next((source['classes'] for source in sources if source and 'classes' in source), None)


def metadata_of(cfg: Config, content: dict[str, Any], config: str, raw: bool) -> dict[str, str]:
    """What a user of the file needs to know, as text."""
    preprocessor = cfg.model.data_preprocessor
    channels = cfg.model.backbone.get('in_channels', 3)
    image = 'RGB' if channels == 3 else f'{channels} channels'
    metadata = {'overlock_mm': __version__, 'config': Path(config).stem}
    if preprocessor.get('mean') is None:  # mmdet and mmseg normalise one or three channels only
        metadata['input'] = f'{image}, as the test pipeline of the config leaves them'
    else:
        metadata['input'] = (
            f'{image}, 0 to 255' if raw else f'{image}, (value - mean) / std of values in 0 to 255'
        )
        metadata['mean'] = json.dumps(list(preprocessor['mean']))
        metadata['std'] = json.dumps(list(preprocessor['std']))
    classes = class_names(cfg, content)
    if classes is not None:
        metadata['classes'] = json.dumps(list(classes))
    return metadata


def main(argv: Sequence[str] | None = None) -> Path:
    """Export as the command line says; return the path of the file."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        shape = None if args.dynamic or args.shape is None else tuple(args.shape)
        check_request(args.opset, shape)
        check_output_file(args.out, ('.onnx',))
        cfg = load_config(args.config)
        if shape is None and not args.dynamic:
            shape = DEFAULT_SHAPES[cfg.default_scope]
        content = read_checkpoint(args.checkpoint)
        if args.with_preprocessing and cfg.model.data_preprocessor.get('mean') is None:
            raise ValueError(
                '--with-preprocessing needs data_preprocessor.mean and std in the config.'
            )
        init_default_scope(cfg.default_scope)
        part = exportable(build_model(cfg, content, args.checkpoint), args.features_only)
        metadata = metadata_of(cfg, content, args.config, args.with_preprocessing)
    if args.with_preprocessing:
        preprocessor = cfg.model.data_preprocessor
        part = Normalised(part, preprocessor['mean'], preprocessor['std'])
    try:
        differences = export_onnx(
            part,
            args.out,
            shape,
            opset=args.opset,
            metadata=metadata,
            compare=not args.no_check,
        )
    except ExportError as error:
        raise SystemExit(f'error: {error}') from None
    for (batch, height, width), difference in differences.items():
        print(f'{batch} x {height} x {width}: differs from PyTorch by {difference:.1e}.')
    size = Path(args.out).stat().st_size / 2**20
    print(f'Wrote {args.out}: {part.task}, {size:.1f} MiB, outputs {", ".join(part.output_names)}.')
    if part.note:
        print(part.note)
    return Path(args.out)


if __name__ == '__main__':
    main()
