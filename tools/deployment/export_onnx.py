r"""Export a classifier, a segmentor or a detector to ONNX.

python tools/deployment/export_onnx.py configs/segmentation/upernet_overlock_t.py \
    upernet_t.pth upernet_t.onnx

The file holds the fused form in standard operators, takes batches of any size, and is put in
place after ONNX Runtime has given the results of PyTorch. ``docs/export.md`` says how to use it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from overlock_mm.analysis.networks import dataset_meta
from overlock_mm.checkpoint import check_compatible, read_checkpoint
from overlock_mm.cli.arguments import load_tensors_only, readable_errors
from overlock_mm.cli.images import find_images
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.export import (
    Exportable,
    ExportError,
    Normalised,
    PastedMasks,
    check_request,
    export_onnx,
    exportable,
)
from overlock_mm.export.description import crop_of, describe
from overlock_mm.export.precision import feeds_of, half_precision, int8
from overlock_mm.export.torch_program import export_program
from overlock_mm.runtime.description import KEY, ModelDescription
from overlock_mm.utils.config import load_config
from overlock_mm.utils.files import replacing

#: Sizes of the published evaluations (H, W).
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmseg': (512, 512), 'mmdet': (800, 1280)}


#: Pictures that are measured; more take longer and change little.
MAX_IMAGES = 32


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a model to ONNX.')
    parser.add_argument('config', help='config file, for example one below configs/')
    parser.add_argument('checkpoint', help='checkpoint file with the weights')
    parser.add_argument('out', metavar='OUT', help='.onnx, or .pt2 for torch.export')
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
        '--paste-masks',
        action='store_true',
        help='one more output: the masks of boxes at the size of the input',
    )
    parser.add_argument(
        '--precision',
        choices=['fp32', 'fp16', 'bf16', 'int8'],
        default='fp32',
        help='fp16 and int8 need --images; default: fp32',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='real pictures, a folder or a pattern: what is measured to choose the operators of '
        f'fp16, and the ranges of int8; the first {MAX_IMAGES} count',
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


def check_precision(args: argparse.Namespace) -> list[Path]:
    """The pictures to measure.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The precision cannot be had, or not without pictures.
    """
    if args.precision == 'bf16':
        raise ValueError(
            'ONNX Runtime has no convolution in bfloat16 on CPUs, so there is no such file. '
            "OpenVINO computes a float32 file in it: Predictor('model.onnx', engine='openvino', "
            "precision='bf16')."
        )
    if args.precision == 'fp32':
        return []
    if args.images is None:
        raise ValueError(
            f'--precision {args.precision} is decided by real pictures: --images FOLDER.'
        )
    if args.features_only:
        raise ValueError(f'--precision {args.precision} is for whole models.')
    return find_images(args.images)[:MAX_IMAGES]


def write_in_precision(
    part: Exportable,
    source: Path,
    target: Path,
    description: ModelDescription,
    pictures: Sequence[Path],
) -> str:
    """Write a float32 file in another precision; what to say about it."""
    import onnx
    import onnxruntime

    model = onnx.load(source)
    feeds = feeds_of(pictures, description)
    said = ''
    if description.precision == 'fp16':
        converted, kept = half_precision(model, feeds)
        said = f'{len(kept)} operators stay in float32 by the measurement. '
    else:
        converted = int8(model, feeds)
    onnx.helper.set_model_props(
        converted,
        {
            **{entry.key: entry.value for entry in model.metadata_props},
            KEY: description.to_json(),
        },
    )
    onnx.checker.check_model(converted)
    with replacing(target) as partial:
        onnx.save(converted, partial)
        sessions = [
            onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
            for path in (partial, source)
        ]
        differences = [
            part.difference(*([torch.from_numpy(a) for a in s.run(None, feed)] for s in sessions))
            for feed in feeds
        ]
    median = sorted(differences)[len(differences) // 2]
    return (
        f'{said}On {len(feeds)} pictures it differs from float32 by {median:.1e} in the median, '
        f'{max(differences):.1e} at most.'
    )


def main(argv: Sequence[str] | None = None) -> Path:
    """Export as the command line says; return the path of the file."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        shape = None if args.dynamic or args.shape is None else tuple(args.shape)
        check_request(args.opset, shape)
        check_output_file(args.out, ('.onnx', '.pt2'))
        pictures = check_precision(args)
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
        if args.paste_masks:
            part = PastedMasks(part)
        description = description_of(cfg, part, content, args, shape)
    if args.with_preprocessing:
        preprocessor = cfg.model.data_preprocessor
        part = Normalised(part, preprocessor['mean'], preprocessor['std'])
    target = Path(args.out)
    if target.suffix == '.pt2':
        with readable_errors((ExportError, ValueError, OSError)):
            if args.precision != 'fp32':
                raise ValueError(f'--precision {args.precision} is for .onnx files.')
            metadata = {KEY: description.to_json()}
            difference = export_program(part, target, shape, metadata=metadata)
        print(f'Wrote {target}: {part.task}, differs from PyTorch by {difference:.1e}.')
        return target
    with readable_errors((ExportError, ValueError, OSError)), TemporaryDirectory() as folder:
        # Of every precision it is the float32 file that is compared with PyTorch.
        single = Path(folder, target.name) if pictures else target
        differences = export_onnx(
            part,
            single,
            shape,
            opset=args.opset,
            metadata={KEY: description.to_json()},
            compare=not args.no_check,
        )
        if pictures:
            other = dataclasses.replace(description, precision=args.precision)
            print(write_in_precision(part, single, target, other, pictures))
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
