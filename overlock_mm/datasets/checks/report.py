"""The data sets of a run, built before it and asked what they hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from overlock_mm.utils.config import innermost_dataset

from .classification import check_class_folders
from .detection import check_built, check_coco_file, check_label_order
from .errors import DataError
from .files import check_complete
from .segmentation import check_label_maps

#: How many files of a data set are decoded before a run.
SAMPLE = 20


class DataSets:
    """Built data sets by their configs, for the runner to take, and a report of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._built: list[tuple[ConfigDict, Any]] = []

    def get(self, config: ConfigDict) -> Any | None:
        """The data set that was built from an equal config, if one was."""
        return next((built for known, built in self._built if known == config), None)

    def add(self, config: ConfigDict) -> Any:
        """Build a data set, or take the one of an equal config."""
        built = self.get(config)
        if built is None:
            built = DATASETS.build(config)
            if hasattr(built, 'full_init'):
                built.full_init()
            self._built.append((config, built))
        return built


def check_data_sets(cfg: Config, splits: Sequence[str], sample: int | None = SAMPLE) -> DataSets:
    """Build the data sets of the splits and ask them what they hold.

    In a distributed run the first process does so; the others build theirs when they need them.

    Args:
        cfg: A full config. Its paths exist.
        splits: Of ``'train'``, ``'val'`` and ``'test'``; one that the config lacks is left out.
        sample: How many files of each data set are decoded; None decodes all.

    Returns:
        The data sets, with the report in ``lines``.

    Raises:
        DataError: What cannot be right; names the file and the remedy.
    """
    sets = DataSets()
    if int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0) > 0:
        return sets
    classes: dict[str, list[str]] = {}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for split in splits:
            loader = cfg.get(f'{split}_dataloader')
            if loader is None:
                continue
            where = f'{split}_dataloader.dataset'
            known = sets.get(loader.dataset) is not None
            if not known:
                for leaf in leaf_configs(loader.dataset):
                    _check_before_building(leaf, where, split != 'train', sets.lines)
            try:
                built = sets.add(loader.dataset)
            except ValueError as error:
                # mmengine joins the entries of its list without asking whether there are any.
                if 'need at least one array' in str(error):
                    raise DataError(_empty_message(loader.dataset, where)) from error
                raise
            if not known:
                for leaf in _leaves(built):
                    _check_leaf(leaf, where, sample, sets.lines)
            metainfo = getattr(built, 'metainfo', None)
            names = metainfo.get('classes') if isinstance(metainfo, dict) else None
            if names and not isinstance(names, str):
                classes[split] = list(names)
                _check_outputs(
                    cfg.model, len(names), split != 'train' and cfg.default_scope == 'mmdet'
                )
                _check_top_k(cfg.get(f'{split}_evaluator'), len(names), split)
    _check_same_classes(classes)
    return sets


def _empty_message(dataset: ConfigDict, where: str) -> str:
    """Why a data set is empty, as far as its config tells."""
    (leaf, *_) = leaf_configs(dataset)
    lazy = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
    if 'BaseSegDataset' in _families(lazy):
        return (
            f'{lazy.data_prefix.get("img_path")} ({where}.data_prefix.img_path) has no file that '
            f'ends in {lazy.img_suffix}. Give the right folder, or the ending with --cfg-options '
            f'{where}.img_suffix=ENDING.'
        )
    return (
        f'{where} is empty: no image of {lazy.ann_file!r} is left. Images without objects and '
        f'those smaller than filter_cfg.min_size are left out (filter_cfg: {lazy.filter_cfg}).'
    )


def leaf_configs(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The configs of data sets inside wrappers."""
    inner = innermost_dataset(dataset)
    if 'datasets' in inner:
        for part in inner.datasets:
            yield from leaf_configs(part)
    else:
        yield inner


def _leaves(dataset: Any) -> Iterator[Any]:
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _leaves(part)
    else:
        yield dataset


def _families(dataset: Any) -> set[str]:
    return {base.__name__ for base in type(dataset).__mro__}


def _is_coco(dataset: Any) -> bool:
    """Whether it reads COCO's instances; panoptic and LVIS files have other fields."""
    families = _families(dataset)
    others = {'CocoPanopticDataset', 'LVISV05Dataset', 'LVISV1Dataset'}
    return 'CocoDataset' in families and not families & others


def _check_before_building(
    config: ConfigDict, where: str, measured: bool, lines: list[str]
) -> None:
    """Ask what would end the building of a data set without a readable message."""
    try:
        # Paths and classes as the library joins and reads them, at no cost.
        lazy = DATASETS.build(dict(config, lazy_init=True, pipeline=[]))
    except TypeError:
        return  # of an unknown kind
    if '://' in str(getattr(lazy, 'ann_file', None) or getattr(lazy, 'data_root', '')):
        return
    if _is_coco(lazy):
        for odd in check_coco_file(lazy, where, measured):
            lines.append(f'warning: {odd}')
    elif 'CustomDataset' in _families(lazy) and not lazy.ann_file and lazy.with_label:
        check_class_folders(Path(lazy.img_prefix), lazy.metainfo.get('classes'), where)


def _check_leaf(dataset: Any, where: str, sample: int | None, lines: list[str]) -> None:
    count = len(dataset)
    step = 1 if sample is None else max(1, -(-count // sample))
    indices = list(range(0, count, step))
    told = f'{where}: {type(dataset).__name__} with {count} images'
    families = _families(dataset)
    if 'BaseSegDataset' in families:
        pixels = check_label_maps(dataset, where, indices)
        told += f'; pixels in {len(indices)} label maps: {pixels}' if pixels else ''
    elif _is_coco(dataset):
        check_label_order(dataset, where)
        told += f'; objects: {_objects(dataset)}'
        check_built(dataset, where, indices)
    elif 'CustomDataset' in families and count:
        classes = dataset.metainfo.get('classes')
        labels = Counter(info.get('gt_label') for info in map(dataset.get_data_info, range(count)))
        if classes and all(isinstance(label, int) for label in labels):
            named = {classes[k]: n for k, n in sorted(labels.items()) if k < len(classes)}
            told += f'; {_short(named)}'
    for index in indices if hasattr(dataset, 'get_data_info') else ():
        path = dataset.get_data_info(index).get('img_path')
        if isinstance(path, str) and '://' not in path:
            if not Path(path).is_file():
                raise DataError(
                    f'{path} is missing ({where} names it). Complete the data set, or set '
                    'data_root and data_prefix to the right folders.'
                )
            check_complete(path)
    lines.append(told)


def _objects(dataset: Any) -> str:
    labels: Counter = Counter()
    for index in range(len(dataset)):
        labels.update(i['bbox_label'] for i in dataset.get_data_info(index)['instances'])
    return _short({name: labels[k] for k, name in enumerate(dataset.metainfo['classes'])})


def _short(counts: dict[str, int], shown: int = 12) -> str:
    text = ', '.join(f'{name} {count}' for name, count in list(counts.items())[:shown])
    return f'{text} and {len(counts) - shown} more' if len(counts) > shown else text


def _check_same_classes(classes: dict[str, list[str]]) -> None:
    if not classes:
        return
    first, names = next(iter(classes.items()))
    for split, others in classes.items():
        if others != names:
            raise DataError(
                f'The classes of {split} are not those of {first}, so that labels mean different '
                f'things: {tuple(others[:10])} and {tuple(names[:10])}. Give both the same names '
                'in the same order (folders and categories included); a class without an image '
                'still needs its empty folder.'
            )


def _check_top_k(evaluators: Any, num_classes: int, split: str) -> None:
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators or {}]:
        top_k = evaluator.get('topk') or ()
        largest = max(top_k if isinstance(top_k, (list, tuple)) else (top_k,), default=0)
        if largest > num_classes:
            raise DataError(
                f'{split}_evaluator asks for the top {largest} of {num_classes} classes. Set its '
                'topk to (1,).'
            )


def _check_outputs(model: Any, num_classes: int, none_over: bool) -> None:
    """Demand that the heads which tell the data set's classes apart have as many outputs."""
    model = model.get('module', model)  # below test-time augmentation
    owners = [('model', model), ('model.roi_head', model.get('roi_head') or {})]
    for prefix, owner in owners:
        for name in ('bbox_head', 'mask_head', 'decode_head', 'auxiliary_head', 'head'):
            heads = owner.get(name) if isinstance(owner, dict) else None
            for head in heads if isinstance(heads, (list, tuple)) else [heads or {}]:
                own = head.get('num_classes')
                if not isinstance(own, int) or own == num_classes:
                    continue
                # One output may stand for two classes; one box class for any object.
                too_few = own < num_classes and own != 1
                if too_few or (own > num_classes and none_over):
                    setting = f'{prefix}.{name}.num_classes'
                    raise DataError(
                        f'{setting} is {own}, but the data set has {num_classes} classes. Set '
                        f'--cfg-options {setting}={num_classes}, or give the data set its '
                        'classes (dataset.metainfo.classes).'
                    )


def log_report(sets: DataSets, work_dir: str | Path | None = None) -> None:
    """Print the lines of the report and write them to ``data.txt`` in the work directory."""
    for line in sets.lines:
        print_log(line, 'current')
    if work_dir is not None and sets.lines:
        Path(work_dir, 'data.txt').write_text('\n'.join(sets.lines) + '\n')
