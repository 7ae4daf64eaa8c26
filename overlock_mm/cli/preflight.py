"""Checks before long runs, which report problems within seconds instead of after an epoch."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from overlock_mm.datasets.checks import DataError, DataSets, check_data_sets
from overlock_mm.datasets.checks.agreement import check_same_classes
from overlock_mm.datasets.checks.kinds import is_local, leaf_configs
from overlock_mm.datasets.checks.report import SAMPLE
from overlock_mm.engine.checkpoint_hook import INTERRUPTED
from overlock_mm.models.arch import OverLoCKArch


def check_data(cfg: Config, splits: Sequence[str], sample: int | None = SAMPLE) -> DataSets:
    """Check that every path of the splits exists, then build and check their data sets.

    Args:
        cfg: A full config.
        splits: Any of ``'train'``, ``'val'`` and ``'test'``; what the config lacks is left out.
        sample: How many files of each data set are decoded; None decodes all.

    Returns:
        The data sets, for the runner.

    Raises:
        FileNotFoundError: Lists each missing path, the setting it comes from and how to set it.
        DataError: Annotations, categories, classes or files do not fit.
    """
    _check_paths(cfg, splits)
    data_sets = check_data_sets(cfg, splits, sample)
    if 'train' in splits:
        _check_full_batch(cfg, data_sets)
    return data_sets


def _check_full_batch(cfg: Config, data_sets: DataSets) -> None:
    """Check that each process gets a full batch if incomplete ones are dropped."""
    loader = cfg.get('train_dataloader') or {}
    data_set = data_sets.get(loader['dataset']) if loader.get('drop_last') else None
    if data_set is None:
        return
    launched = cfg.get('launcher', 'none') != 'none'
    names = ('WORLD_SIZE', 'SLURM_NTASKS') if launched else ()
    processes = next((int(os.environ[name]) for name in names if name in os.environ), 1)
    if -(-len(data_set) // processes) < loader['batch_size']:
        raise DataError(
            f'An epoch would have no step: {len(data_set)} images make no batch of '
            f'{loader["batch_size"]} for each of {processes} processes, and incomplete batches are '
            'left out. Lower train_dataloader.batch_size, or set train_dataloader.drop_last=False.'
        )


def _check_paths(cfg: Config, splits: Sequence[str]) -> None:
    missing = {
        path: setting
        for split in splits
        for setting, path in _data_paths(cfg, split)
        # Paths like s3://... are for mmengine's storage backends to judge.
        if '://' not in path and not os.path.exists(path)
    }
    if not missing:
        return
    lines = [f'  {path} ({setting})' for path, setting in missing.items()]
    root = cfg.get('data_root')
    remedy = (
        f'The config looks under data_root={root!r}; give the right folder with '
        '--cfg-options data_root=FOLDER.'
        if root
        else 'Set each with --cfg-options, for example '
        f'--cfg-options {next(iter(missing.values()))}=PATH.'
    )
    raise FileNotFoundError('\n'.join(['Data that the config names is missing:', *lines, remedy]))


def check_initial_weights(cfg: Config) -> None:
    """Check that the local files that ``init_cfg`` names exist. Addresses are not checked.

    Raises:
        FileNotFoundError: Names the file and the setting.
    """
    for setting, path in _pretrained(cfg.model, 'model'):
        if '://' not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f'The weights to start from are missing: {path} ({setting}). Give another file '
                f'with --cfg-options {setting}=FILE.'
            )


def check_sharding(cfg: Config) -> None:
    """Refuse a hook that cannot work on a model sharded across processes.

    Raises:
        ValueError: There is an ``EMAHook``, which copies the model.
    """
    hooks = [hook.get('type') for hook in cfg.get('custom_hooks') or ()]
    if 'EMAHook' in hooks and 'FSDPStrategy' in str((cfg.get('strategy') or {}).get('type')):
        raise ValueError(
            'EMAHook cannot average the weights of a model that FSDP has sharded. '
            'Leave one of them out, for example with custom_hooks = [] in the config.'
        )


def check_constructor(cfg: Config) -> None:
    """Refuse the libraries' own layer-wise learning rates, which do not know this backbone.

    Raises:
        ValueError: Says what to write instead.
    """
    optimizer = cfg.get('optim_wrapper') or {}
    constructor = str(optimizer.get('constructor', '')).rpartition('.')[2]
    backbone = str((cfg.model.get('backbone') or {}).get('type')).rpartition('.')[2]
    if backbone == 'OverLoCK' and constructor.startswith(('LearningRateDecay', 'LayerDecay')):
        rate = (optimizer.get('paramwise_cfg') or {}).get('decay_rate', 0.9)
        raise ValueError(
            f'{constructor} does not know the parameters of OverLoCK. Write '
            "optim_wrapper = dict(constructor='OverLoCKLayerDecayConstructor', "
            f'paramwise_cfg=dict(_delete_=True, decay_rate={rate})), and let _base_ or '
            "custom_imports bring in 'overlock_mm'."
        )


def check_classes_of_weights(
    meta: Mapping[str, Any], data_sets: DataSets, split: str, weights: str = 'the checkpoint'
) -> None:
    """Compare the classes that weights were trained on with those of the data set.

    Args:
        meta: Names of the weights' classes, under ``classes``, as far as they are known.
        data_sets: Checked; without those of processes but the first.
        split: Name of the data set.
        weights: What holds the weights, for messages.

    Raises:
        DataError: A name has another label than in the weights.
    """
    trained = meta.get('classes')
    classes = data_sets.classes.get(split)
    if isinstance(trained, (list, tuple)) and trained and classes is not None:
        data_sets.warn(check_same_classes({weights: list(trained), split: classes}))


def check_widths(cfg: Config) -> None:
    """Check that the modules that read the backbone expect the widths of its outputs.

    Raises:
        ValueError: Names the setting and its value.
    """
    model = cfg.model
    backbone = model.get('backbone') or {}
    if str(backbone.get('type')).rpartition('.')[2] != 'OverLoCK':
        return
    widths = OverLoCKArch.from_spec(backbone.get('arch', 't')).pyramid_channels
    outputs = list(backbone.get('out_indices', (0, 1, 2, 3)))
    if any(index not in range(len(widths)) for index in outputs):
        return
    given = [widths[index] for index in outputs]
    for setting, reader in _readers(model):
        expected = reader.get('in_channels')
        index = reader.get('in_index', -1) if isinstance(expected, int) else reader.get('in_index')
        read: Any = given
        if isinstance(index, int):
            read = given[index] if -len(given) <= index < len(given) else None
        elif index is not None:
            read = [given[i] for i in index if i in range(len(given))]
        if expected is not None and _listed(expected) != _listed(read):
            value = str(read).replace(' ', '')
            raise ValueError(
                f'{setting}.in_channels is {expected}, but OverLoCK with '
                f'out_indices={tuple(outputs)} gives {read}. Set --cfg-options '
                f'{setting}.in_channels={value}.'
            )


def allow_unread_outputs(cfg: Config) -> None:
    """Let data-parallel training accept backbone outputs that neither neck nor heads read.

    The norm of such an output has no gradient, at which PyTorch stops by default.
    """
    unread = _unread_outputs(cfg.model)
    if cfg.get('launcher', 'none') == 'none' or not unread:
        return
    wrapper = cfg.get('model_wrapper_cfg')
    settings = cfg if wrapper is None else wrapper
    if settings.get('find_unused_parameters') or 'FSDP' in str(cfg.get('strategy')):
        return
    settings['find_unused_parameters'] = True
    print_log(
        f'Nothing reads output(s) {", ".join(map(str, unread))} of the backbone; '
        'find_unused_parameters=True lets data-parallel training pass over their norms, at some '
        'cost. Without these outputs in `out_indices` it is not needed (docs/heads.md).',
        logger='current',
        level=logging.WARNING,
    )


def _unread_outputs(model: Any) -> list[int]:
    """Return the indices in ``out_indices`` of an OverLoCK backbone whose outputs nothing reads."""
    backbone = model.get('backbone') or {}
    if str(backbone.get('type')).rpartition('.')[2] != 'OverLoCK':
        return []
    outputs = list(backbone.get('out_indices', (0, 1, 2, 3)))
    neck = model.get('neck')
    if neck:
        neck = neck[0] if isinstance(neck, (list, tuple)) else neck
        return outputs[: neck.get('start_level', 0)]
    read: set[int] = set()
    for setting, head in _readers(model):
        if not setting.startswith(('model.decode_head', 'model.auxiliary_head')):
            continue
        # mmseg's default is the last map; heads such as Mask2Former's, with a list of widths and
        # no index, read all.
        width = head.get('in_channels')
        index = head.get('in_index', -1 if isinstance(width, int) else range(len(outputs)))
        indices = [index] if isinstance(index, int) else list(index)
        read |= {i % len(outputs) for i in indices}
    return [output for i, output in enumerate(outputs) if read and i not in read]


def _listed(widths: Any) -> list[Any]:
    return list(widths) if isinstance(widths, (list, tuple)) else [widths]


def _readers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules that read the backbone's outputs, with their settings' names."""
    names = ('neck',) if model.get('neck') else ('panoptic_head', 'decode_head', 'auxiliary_head')
    for name in names:
        parts = model.get(name) or []
        if not isinstance(parts, (list, tuple)):
            yield f'model.{name}', parts
        elif name == 'neck':
            yield f'model.{name}.0', parts[0]  # the others read the first one
        else:
            yield from ((f'model.{name}.{number}', part) for number, part in enumerate(parts))


def check_work_dir(path: str | Path) -> None:
    """Create the work directory and try to write in it.

    Raises:
        OSError: It cannot be created or written to; the message says what to do.
    """
    _check_folder(path, 'work directory', '--work-dir')


def check_out_dir(path: str | Path) -> None:
    """Create the folder for results and try to write in it.

    Raises:
        OSError: It cannot be created or written to; the message says what to do.
    """
    _check_folder(path, 'output folder', '--out-dir')


def _check_folder(path: str | Path, what: str, option: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f'The {what} {str(path)!r} is not writable ({error.strerror}). '
            f'Choose another with {option}.'
        ) from error


def check_output_file(path: str | Path, suffixes: Sequence[str]) -> None:
    """Check the name of a file to be written later and try to write in its folder.

    Raises:
        ValueError: The suffix is none of ``suffixes``.
        OSError: Its folder cannot be created or written to.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f'The output must end in {" or ".join(suffixes)}, got {str(path)!r}.')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f'{str(path)!r} cannot be written ({error.strerror}).') from error


def find_checkpoint_to_resume(work_dir: str | Path) -> Path | None:
    """Return the newest checkpoint in a work directory, also when the directory was moved.

    ``last_checkpoint``, which mmengine writes after each checkpoint, holds a path as it was then;
    after a move, or when the run was killed while writing it, the newest file counts instead.

    Returns:
        The path, or None if there is no checkpoint.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        named = pointer.read_text().strip()
        for candidate in (Path(named), work_dir / Path(named).name):
            if named and candidate.is_file():
                return candidate
    patterns = ('epoch_*.pth', 'iter_*.pth', INTERRUPTED)
    saved = [file for pattern in patterns for file in work_dir.glob(pattern)]
    return max(saved, key=lambda file: file.stat().st_mtime, default=None)


def _data_paths(cfg: Config, split: str) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted setting and the path that follows from it."""
    where = f'{split}_dataloader.dataset'
    loader = cfg.get(f'{split}_dataloader')
    for dataset in leaf_configs(loader.dataset) if loader is not None else ():
        if not is_local(dataset):
            continue
        root = dataset.get('data_root') or ''
        if root:
            yield f'{where}.data_root', root
        if dataset.get('ann_file'):
            yield f'{where}.ann_file', os.path.join(root, dataset.ann_file)
        prefixes = dataset.get('data_prefix') or {}
        if isinstance(prefixes, str):
            yield f'{where}.data_prefix', os.path.join(root, prefixes)
        else:
            for name, prefix in prefixes.items():
                if prefix is not None:
                    yield f'{where}.data_prefix.{name}', os.path.join(root, prefix)
    evaluators: Any = cfg.get(f'{split}_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if evaluator.get('ann_file'):
            yield f'{split}_evaluator.ann_file', evaluator.ann_file


def _pretrained(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted setting and the checkpoint that it names."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained':
            yield f'{where}.checkpoint', node['checkpoint']
        for key, value in node.items():
            yield from _pretrained(value, f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _pretrained(value, f'{where}.{index}')
