"""Test a detector, segmentor or classifier.

python tools/test.py configs/detection/cascade_overlock_s.py work_dirs/.../epoch_36.pth
python tools/test.py configs/detection/cascade_overlock_s.py exported.onnx --engine openvino

The metrics are printed and written to ``metrics.json`` in the work directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.fileio import dump
from torch import Tensor

from overlock_mm.checkpoint import check_compatible, read_checkpoint
from overlock_mm.cli.arguments import (
    add_common_arguments,
    leaves_process_group,
    load_run_config,
    load_tensors_only,
    readable_errors,
    unwrapped,
)
from overlock_mm.cli.exported_model import ExportedModel, fitting_metrics
from overlock_mm.cli.preflight import (
    check_classes_of_weights,
    check_data,
    check_output_file,
    check_work_dir,
)
from overlock_mm.datasets.checks import DataError, DataSets
from overlock_mm.datasets.checks.agreement import name_of
from overlock_mm.datasets.checks.report import log_report
from overlock_mm.engine.runner import build_runner
from overlock_mm.runtime import ModelFileError
from overlock_mm.utils.config import innermost_dataset


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Test a model.')
    parser.add_argument('config', help='config file, for example one below configs/')
    parser.add_argument(
        'checkpoint', help='checkpoint file with the weights, or an exported file (.onnx, .xml)'
    )
    add_common_arguments(parser)
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions too, pickled; masks as COCO RLE'
    )
    parser.add_argument('--show-dir', metavar='FOLDER', help='draw predictions into this folder')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: the `tta_model` and `tta_pipeline` of the config',
    )
    parser.add_argument(
        '--engine',
        choices=['onnxruntime', 'openvino'],
        help='what runs an exported file; default: by its suffix',
    )
    parser.add_argument(
        '--device', help="where an exported file runs, such as cuda; default: the engine's CPU"
    )
    parser.add_argument(
        '--precision', help='of the computation of OpenVINO, such as bf16; default: f32'
    )
    return parser.parse_args(argv)


def enable_exported(cfg: Config, args: argparse.Namespace, data_sets: DataSets) -> None:
    """Replace the model by an exported file, after a check of what it says about itself."""
    for option, given in (('--tta', args.tta), ('--launcher', args.launcher != 'none')):
        if given:
            raise ValueError(f'{option} is for a checkpoint; an exported file is tested as it is.')
    settings = dict(
        file=args.checkpoint,
        device=args.device or 'cpu',
        engine=args.engine,
        precision=args.precision,
        batch_size=cfg.test_dataloader.batch_size,
    )
    description = ExportedModel(**settings).description
    cfg.test_evaluator, left_out = fitting_metrics(description, cfg, args.checkpoint)
    data_sets.warn(left_out)
    if not description.classes:
        data_sets.warn(
            [f'{args.checkpoint} names no classes. They are taken for those of the data.']
        )
    check_classes_of_weights({'classes': description.classes}, data_sets, 'test', args.checkpoint)
    cfg.model = dict(type='ExportedModel', **settings)
    # It copies the model, and the averaged weights are those of the file.
    hooks = cfg.get('custom_hooks') or ()
    cfg.custom_hooks = [hook for hook in hooks if name_of(hook) != 'EMAHook']


def enable_tta(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline as the config says."""
    lacking = [key for key in ('tta_model', 'tta_pipeline') if not cfg.get(key)]
    if lacking:
        raise ValueError(f'--tta needs {" and ".join(lacking)} in the config.')
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    innermost_dataset(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline


def enable_drawing(cfg: Config, folder: str) -> None:
    """Let the visualization hook of the config's library draw every test image."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError('--show-dir needs `default_hooks.visualization` in the config.')
    folder = str(Path(folder).absolute())
    # The three libraries spell the same option differently.
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=folder)
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(draw=True, test_out_dir=folder)


def results_writer(cfg: Config, path: str) -> DumpResults:
    """Return a metric that computes nothing and writes the predictions."""
    if cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    return DumpResults(out_file_path=path)


def plain(value: Any) -> Any:
    """Return a metric as JSON: a number, or a list for metrics per class, nested for matrices."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, str) else float(value)


@leaves_process_group()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Test as the command line says; return the metrics."""
    args = parse_args(argv)
    load_tensors_only()
    with readable_errors():
        cfg = load_run_config(args)
        exported = Path(args.checkpoint).suffix in ('.onnx', '.xml')
        if not exported and (args.engine or args.device or args.precision):
            raise ValueError(
                '--engine, --device and --precision are for exported files (.onnx, .xml).'
            )
        checkpoint = None if exported else read_checkpoint(args.checkpoint)
        check_work_dir(cfg.work_dir)
        if args.tta and not exported:
            enable_tta(cfg)  # before the data set is built, which takes over its pipeline
        data_sets = check_data(cfg, ('test',))
        if checkpoint is None:
            enable_exported(cfg, args, data_sets)
        else:
            meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
            check_classes_of_weights(meta, data_sets, 'test')
            cfg.load_from = args.checkpoint
        if args.out is not None:
            check_output_file(args.out, ('.pkl', '.pickle'))
        if args.show_dir is not None:
            if args.tta and cfg.default_scope == 'mmpretrain':
                raise ValueError(
                    '--show-dir does not go with --tta for a classifier: mmpretrain draws one view '
                    'of an image. Run it once with each.'
                )
            enable_drawing(cfg, args.show_dir)
        cfg.pop('runner_type', None)  # of a run that shards its model: for a test it is whole
        runner = build_runner(cfg, data_sets)
        if is_main_process():
            log_report(data_sets, cfg.work_dir)
        if checkpoint is not None:
            check_compatible(unwrapped(runner.model), checkpoint['state_dict'], args.checkpoint)
        del checkpoint
    if args.out is not None:
        runner.test_evaluator.metrics.append(results_writer(cfg, args.out))
    with readable_errors((DataError, ModelFileError)):
        metrics = {name: plain(value) for name, value in runner.test().items()}
    if is_main_process():
        dump(metrics, Path(cfg.work_dir, 'metrics.json'), indent=2)
    return metrics


if __name__ == '__main__':
    main()
