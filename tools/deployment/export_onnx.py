r"""Export a classifier, a segmentor or a detector to ONNX.

python tools/deployment/export_onnx.py configs/segmentation/upernet_overlock_t.py \
    upernet_t.pth upernet_t.onnx

The file holds the fused form in standard operators, takes batches of any size, and is put in
place after ONNX Runtime has given the results of PyTorch. ``docs/export.md`` says how to use it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from overlock_mm.analysis.networks import dataset_meta
from overlock_mm.checkpoint import check_compatible, read_checkpoint
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.export import (
    Exportable,
    ExportError,
    Normalised,
    check_request,
    export_onnx,
    exportable,
)
from overlock_mm.export.description import crop_of, describe
from overlock_mm.runtime.description import KEY, ModelDescription
from overlock_mm.utils.config import load_config

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
        help='size of the images in pixels; default: what the test pipeline cuts out for a '
        'classifier, 512 512 for a segmentor, 800 1280 for a detector',
    )
    size.add_argument('--dynamic', action='store_true', help='one file for images of any size')
    parser.add_argument('--opset', type=int, default=17, help='17 (the default) to 20')
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='take RGB images in 0 to 255 and normalise them; without it the input is normalised',
    )
    parser.add_argument(
        '--features-only', action='store_true', help='export only backbone and neck of a detector'
    )
    parser.add_argument(
        '--no-check', action='store_true', help='do not compare with PyTorch in ONNX Runtime'
    )
    return parser.parse_args(argv)


def build_model(cfg: Config, content: dict[str, Any], checkpoint: str) -> nn.Module:
    """Return the model of a config with the weights of a checkpoint, in fused form."""
    weights = content['state_dict']
    model = MODELS.build(cfg.model)
    check_compatible(model, weights, checkpoint)
    model.load_state_dict(weights, strict=False)
    model.backbone.switch_to_deploy()
    return revert_sync_batchnorm(model)


def description_of(
    cfg: Config, part: Exportable, content: dict[str, Any], args: argparse.Namespace, shape: Any
) -> ModelDescription:
    """Return what the file says about itself."""
    meta = dataset_meta(cfg, content.get('meta') or {})
    digest = hashlib.sha256(Path(args.checkpoint).read_bytes()).hexdigest()
    return describe(
        cfg,
        part,
        classes=tuple(meta.get('classes', ())),
        palette=tuple(tuple(color) for color in meta.get('palette', ())),
        size=shape,
        normalises=args.with_preprocessing,
        config=Path(args.config).stem,
        checkpoint_sha256=digest,
    )


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
            shape = crop_of(cfg) or DEFAULT_SHAPES[cfg.default_scope]
        content = read_checkpoint(args.checkpoint)
        if args.with_preprocessing and cfg.model.data_preprocessor.get('mean') is None:
            raise ValueError(
                '--with-preprocessing needs data_preprocessor.mean and std in the config.'
            )
        init_default_scope(cfg.default_scope)
        part = exportable(build_model(cfg, content, args.checkpoint), args.features_only)
        description = description_of(cfg, part, content, args, shape)
    if args.with_preprocessing:
        preprocessor = cfg.model.data_preprocessor
        part = Normalised(part, preprocessor['mean'], preprocessor['std'])
    try:
        differences = export_onnx(
            part,
            args.out,
            shape,
            opset=args.opset,
            metadata={KEY: description.to_json()},
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
    if description.steps is None:
        print(
            'Its test pipeline does more to pictures than the metadata can say: prepare the input '
            'yourself.'
        )
    return Path(args.out)


if __name__ == '__main__':
    main()
