"""What kind of data set a config or an object is, and what it wraps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from overlock_mm.utils.config import innermost_dataset

from .agreement import name_of
from .errors import DataError


def leaf_configs(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The configs of data sets inside wrappers."""
    inner = innermost_dataset(dataset)
    if 'datasets' in inner:
        for part in inner.datasets:
            yield from leaf_configs(part)
    else:
        yield inner


def is_local(config: Any) -> bool:
    """Whether all files of a data set's config are on a disk of this machine."""
    if isinstance(config, dict):
        for key in ('backend_args', 'file_client_args'):
            if (config.get(key) or {}).get('backend', 'local') not in ('local', 'disk'):
                return False
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return all(is_local(value) for value in config)
    return not (isinstance(config, str) and '://' in config)


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the built data sets inside wrappers."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from leaves(part)
    else:
        yield dataset


def lazily_built(config: ConfigDict) -> Any | None:
    """A data set with its paths and classes as the library joins and reads them, without data.

    Raises:
        DataError: The data set of a benchmark is given other classes.
    """
    try:
        return DATASETS.build(dict(config, lazy_init=True, pipeline=[]))
    except TypeError:
        return None  # of an unknown kind
    except ValueError as error:
        if 'is not a subset of classes' not in str(error):
            raise
        raise DataError(
            f'{name_of(config)} has classes of its own, and metainfo.classes are others. For data '
            "of your own set the data set's type to 'BaseSegDataset', with img_suffix, "
            'seg_map_suffix and reduce_zero_label as they are in your files.'
        ) from error


def families_of(dataset: Any) -> set[str]:
    """Return the names of its class and of those that this one comes from."""
    return {base.__name__ for base in type(dataset).__mro__}


def is_plain_coco(dataset: Any) -> bool:
    """Whether mmdet's own ``CocoDataset`` reads the file, or a subclass that leaves this to it."""
    methods = ('load_data_list', 'parse_data_info')
    owners = {
        next(base.__name__ for base in type(dataset).__mro__ if method in vars(base))
        for method in methods
        if hasattr(dataset, method)
    }
    return owners == {'CocoDataset'}
