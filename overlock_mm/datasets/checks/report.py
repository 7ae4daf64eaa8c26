"""The data sets of a run, built before it and asked what they hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from .agreement import (
    check_class_weights,
    check_ignored,
    check_labels,
    check_metric_file,
    check_outputs,
    check_same_classes,
    check_top_k,
    coco_metrics,
    same_file,
)
from .classification import check_class_folders
from .coco_file import CocoFile
from .detection import Objects, check_annotations, check_image_size, count_objects, short
from .errors import DataError, Problems
from .kinds import families_of, is_local, is_plain_coco, lazily_built, leaf_configs, leaves
from .left_out import pictures_left_out
from .loading import load_sample
from .queries import check_kept_results
from .segmentation import check_format, check_label_maps, named_pixels

#: How many files of a data set are decoded before a run.
SAMPLE = 20


class DataSets:
    """Built data sets by their configs, for the runner to take, and a report of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        #: Names of the classes, by split.
        self.classes: dict[str, list[str]] = {}
        self._built: list[tuple[ConfigDict, Any]] = []

    def get(self, config: ConfigDict) -> Any | None:
        """The data set that was built from an equal config, if one was."""
        return next((built for known, built in self._built if known == config), None)

    def add(self, config: ConfigDict, built: Any) -> None:
        """Keep a data set."""
        self._built.append((config, built))

    def warn(self, odd: Sequence[str]) -> None:
        """Add lines about what is odd."""
        self.lines += [f'warning: {line}' for line in odd]


def check_data_sets(cfg: Config, splits: Sequence[str], sample: int | None = SAMPLE) -> DataSets:
    """Build the data sets of the splits and ask them what they hold.

    In a distributed run the first process does so; the others build theirs when they need them.

    Args:
        cfg: A full config. Its paths exist.
        splits: Any of ``'train'``, ``'val'`` and ``'test'``; what the config lacks is left out.
        sample: How many files of each data set are decoded; None decodes all.

    Returns:
        The data sets, with the report in ``lines``.

    Raises:
        DataError: Whatever cannot be right, all of it at once, each with file and remedy.
    """
    sets = DataSets()
    problems = Problems()
    if int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0) > 0:
        return sets
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for split in splits:
            if cfg.get(f'{split}_dataloader') is not None:
                with problems.gathered():
                    _Split(cfg, split, sets, sample).check()
        with problems.gathered():
            sets.warn(check_same_classes(sets.classes))
    problems.raise_all()
    return sets


class _Split:
    """The questions to the data set of one loader."""

    def __init__(self, cfg: Config, split: str, sets: DataSets, sample: int | None) -> None:
        self.model = cfg.model
        self.scope = cfg.default_scope
        self.split = split
        self.config = cfg[f'{split}_dataloader'].dataset
        self.evaluators = cfg.get(f'{split}_evaluator') if split != 'train' else None
        self.where = f'{split}_dataloader.dataset'
        self.sets = sets
        self.sample = sample
        self.files: dict[str, CocoFile] = {}
        self.problems = Problems()
        #: Settings and pipelines that take the place of the first one in the course of training.
        self.later = [
            (f'custom_hooks.{number}.switch_pipeline', hook.switch_pipeline)
            for number, hook in enumerate(cfg.get('custom_hooks') or ())
            if split == 'train' and 'switch_pipeline' in hook
        ]

    def check(self) -> None:
        """Ask them all.

        Raises:
            DataError: What cannot be right. What cannot even be built is not asked further.
        """
        if self.split != 'train':
            with self.problems.gathered():
                check_kept_results(self.model)
        built = self.sets.get(self.config)
        if built is None:
            self._check_before_building()
            built = self._build()
            self.sets.add(self.config, built)
            parts = list(leaves(built))
            for part in parts:
                with self.problems.gathered():
                    self._check_leaf(part, is_only=len(parts) == 1)
            self._check_alike(built)
        metainfo = getattr(built, 'metainfo', None)
        names = metainfo.get('classes') if isinstance(metainfo, dict) else None
        if names and not isinstance(names, str):
            self.sets.classes[self.split] = list(names)
            none_over = self.split != 'train' and self.scope == 'mmdet'
            with self.problems.gathered():
                check_outputs(self.model, len(names), none_over)
            with self.problems.gathered():
                check_class_weights(self.model)
            with self.problems.gathered():
                check_top_k(self.evaluators, self.model, len(names), self.split)
        self.problems.raise_all()

    def _check_alike(self, built: Any) -> None:
        """Compare what a first sample has with one of other parts and of later pipelines."""
        first, *others = leaves(built)
        if not others and (not self.later or first is not built):
            return
        with self.problems.gathered():
            expected = _fields(first[0])
            for number, part in enumerate(others, 1):
                self._warn_of_lacking(f'part {number} of {self.where}', expected, part[0])
        for setting, pipeline in self.later if first is built else ():
            with self.problems.gathered():
                sample = _run_later(built, pipeline, setting, self.where)
                self._warn_of_lacking(setting, expected, sample)

    def _warn_of_lacking(self, name: str, expected: set[str], sample: Any) -> None:
        lacking = sorted(expected - _fields(sample)) if sample is not None else []
        if lacking:
            self.sets.warn(
                [f'samples of {name} have no {", ".join(lacking)}, which the first ones have.']
            )

    def _check_before_building(self) -> None:
        """Ask what would end the building without a readable message."""
        objects = Objects()
        for config in leaf_configs(self.config):
            lazy = lazily_built(config)
            if lazy is None or not is_local(config):
                continue
            if is_plain_coco(lazy):
                file = self._file(lazy.ann_file, f'{self.where}.ann_file')
                measured = self._is_measured(lazy.ann_file)
                names = list(lazy.metainfo['classes'])
                with self.problems.gathered():
                    file.check_ids()
                with self.problems.gathered():
                    self.sets.warn(file.check_classes(names, measured))
                if file.annotations is not None:  # as in the files of COCO's test server
                    with self.problems.gathered():
                        count, odd = check_annotations(file, names, measured)
                        objects += count
                        self.sets.warn(odd)
            elif (
                'CustomDataset' in families_of(lazy)
                and not lazy.ann_file
                and lazy.with_label
                and Path(lazy.img_prefix).is_dir()
            ):
                names = lazy.metainfo.get('classes')
                with self.problems.gathered():
                    check_class_folders(Path(lazy.img_prefix), names, self.where)
        self.problems.raise_all()
        if any(file.annotations is not None for file in self.files.values()):
            head = ', '.join(file.head for file in self.files.values())
            images = sum(len(file.images) for file in self.files.values())
            self.sets.warn(objects.check(head, images, self.where, self.split == 'train'))

    def _build(self) -> Any:
        try:
            if len(self.files) == 1 and 'dataset' not in self.config:
                (file,) = self.files.values()
                return file.build_dataset(self.config)
            built = DATASETS.build(self.config)
            if hasattr(built, 'full_init'):
                built.full_init()
            return built
        except (ValueError, AssertionError) as error:
            # mmengine joins the entries of its list without asking whether there are any.
            if 'need at least one array' in str(error):
                raise DataError(self._empty()) from error
            if isinstance(error, AssertionError):
                raise DataError(f'{self.where} cannot be built: {error}') from error
            raise

    def _empty(self) -> str:
        """Why a data set is empty, as far as its config tells."""
        (leaf, *_) = leaf_configs(self.config)
        lazy = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
        if 'BaseSegDataset' in families_of(lazy):
            return (
                f'{lazy.data_prefix.get("img_path")} ({self.where}.data_prefix.img_path) has no '
                f'file that ends in {lazy.img_suffix}. Give the right folder, or the ending with '
                f'--cfg-options {self.where}.img_suffix=ENDING.'
            )
        return (
            f'{self.where} is empty: no image of {lazy.ann_file!r} is left. Images without objects '
            f'and those smaller than filter_cfg.min_size are left out (filter_cfg: '
            f'{lazy.filter_cfg}).'
        )

    def _check_leaf(self, dataset: Any, is_only: bool) -> None:
        count = len(dataset)
        step = 1 if self.sample is None else max(1, -(-count // self.sample))
        indices = range(0, count, step)
        text = f'{self.where}: {type(dataset).__name__} with {count} images'
        families = families_of(dataset)
        if 'BaseSegDataset' in families:
            folder = dataset.data_prefix.get('img_path')
            self.sets.warn(pictures_left_out(dataset, folder, self.where))
            pixels = check_label_maps(dataset, self.where, indices)
            if pixels is not None:
                check_ignored(self.model, self.evaluators, dataset, pixels)
                self.sets.warn(check_format(dataset, self.where))
                named = named_pixels(pixels, dataset.metainfo.get('classes') or ())
                text += f'; pixels in {len(indices)} label maps: {short(named)}'
        elif 'BaseDetDataset' in families and 'CocoPanopticDataset' not in families:
            if getattr(dataset, 'ann_file', None) in self.files:
                listed = len(self.files[dataset.ann_file].images)
                text += f' of {listed} in the file' if count < listed else ''
                names = list(dataset.metainfo['classes'])
                with self.problems.gathered():
                    self.sets.warn(
                        check_metric_file(self.evaluators, dataset, names, self.split, self._file)
                    )
            with self.problems.gathered():
                learned = is_only and self.split == 'train'
                text += f'; objects: {count_objects(dataset, self.where, learned=learned)}'
        elif 'CustomDataset' in families and count:
            self.sets.warn(pictures_left_out(dataset, dataset.img_prefix, self.where))
            text += self._count_labels(dataset)
        if 'BaseSegDataset' not in families and hasattr(dataset, 'get_data_info'):
            self._load(dataset, indices)
        self.sets.lines.append(text)

    def _count_labels(self, dataset: Any) -> str:
        infos = map(dataset.get_data_info, range(len(dataset)))
        labels = Counter(info.get('gt_label') for info in infos)
        if not all(isinstance(label, int) for label in labels):
            return ''
        check_labels(self.model, max(labels), self.where)
        classes = dataset.metainfo.get('classes') or [str(k) for k in range(max(labels) + 1)]
        lacking = [name for k, name in enumerate(classes) if not labels[k]]
        if lacking and self.split == 'train':
            shown = ', '.join(map(repr, lacking[:5])) + (' ...' if len(lacking) > 5 else '')
            self.sets.warn(
                [f'{self.where} has no image of {len(lacking)} of {len(classes)} classes: {shown}.']
            )
        named = {classes[k]: n for k, n in sorted(labels.items()) if 0 <= k < len(classes)}
        return f'; {short(named)}'

    def _load(self, dataset: Any, indices: Sequence[int]) -> None:
        """Load a sample of the files; report the first image of another size than annotated."""
        masks_measured = any('segm' in m.get('metric', ()) for m in coco_metrics(self.evaluators))
        odd = None
        for index in indices:
            with self.problems.gathered():
                loaded = load_sample(dataset, index, self.where)
                if loaded is not None:
                    odd = odd or check_image_size(loaded, self.where, masks_measured)
        self.sets.warn([odd] if odd else [])

    def _file(self, path: str, where: str) -> CocoFile:
        """An annotation file, parsed once."""
        known = (file for other, file in self.files.items() if same_file(other, path))
        file = next(known, None)
        if file is None:
            file = self.files[path] = CocoFile(path, where)
        return file

    def _is_measured(self, path: str) -> bool:
        metrics = coco_metrics(self.evaluators)
        return any(m.get('ann_file') is None or same_file(m.ann_file, path) for m in metrics)


def _fields(packed: Any) -> set[str]:
    """Names of what a sample has when it leaves its pipeline."""
    names = set(packed) if isinstance(packed, dict) else set()
    sample: Any = packed.get('data_samples') if isinstance(packed, dict) else None
    for name, part in sample.items() if hasattr(sample, 'items') else ():
        names.add(name)
        if hasattr(part, 'items'):
            names.update(f'{name}.{key}' for key, _ in part.items())
    return names


def _run_later(dataset: Any, pipeline: Any, setting: str, where: str) -> Any:
    """The first sample as a pipeline makes it that a hook puts in place later.

    Raises:
        DataError: It cannot be built, or fails, or ignores all objects of a class.
    """
    try:
        transforms = Compose(pipeline).transforms
        if 'CocoDataset' in families_of(dataset):
            count_objects(dataset, where, transforms)
        sample = dataset.get_data_info(0)
        for transform in transforms:
            sample = transform(sample) if sample is not None else None
    except DataError as error:
        raise DataError(f'{setting}: {error}') from error
    except Exception as error:
        raise DataError(
            f'{setting} fails on the first sample of {where}, and would do so in the course of '
            f'training: {type(error).__name__}: {error}.'
        ) from error
    return sample


def log_report(sets: DataSets, work_dir: str | Path | None = None) -> None:
    """Print the lines of the report and write them to ``data.txt`` in the work directory."""
    for line in sets.lines:
        print_log(line, 'current')
    if work_dir is not None and sets.lines:
        Path(work_dir, 'data.txt').write_text('\n'.join(sets.lines) + '\n')
