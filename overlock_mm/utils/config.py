"""Loading of configs for the command line tools, with the user's options."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from overlock_mm.configs import list_configs

#: Of the files that mmengine reads as configs.
_SUFFIXES = ('.py', '.yml', '.yaml', '.json')


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config file and merge ``--cfg-options`` into it.

    ``data_root`` among the options moves the whole data set: a config writes its ``data_root`` into
    several places while it is parsed (data sets, evaluators), and all of them follow. The other
    options are merged after that, so they take precedence in these places.

    Args:
        path: The config file.
        options: Dotted keys and their values.

    Raises:
        FileNotFoundError: No such file; the message names configs with similar names.
        ValueError: The file is of another kind, or ``data_root`` is given but the config has none
            to replace.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(_no_config_message(path))
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f'{str(path)!r} is not a config file ({", ".join(_SUFFIXES)}). Where a tool takes a '
            'config and a checkpoint, the config comes first.'
        )
    cfg = Config.fromfile(path)
    options = dict(options or {})
    if 'data_root' in options:
        _move_data_root(cfg, str(options.pop('data_root')))
    cfg.merge_from_dict(options)
    return cfg


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Return the data set config inside wrappers such as ``RepeatDataset``."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _no_config_message(path: Path) -> str:
    known = list_configs()
    # Compare file names first, because a wrong folder is the most common mistake.
    stems = {Path(name).stem: name for name in known}
    near = [stems[stem] for stem in difflib.get_close_matches(path.stem, stems, n=3, cutoff=0.5)]
    message = f'There is no config file {str(path)!r}.'
    if near:
        message += ' Near ones: ' + ', '.join(f'configs/{name}' for name in near) + '.'
    elif known:
        message += ' Available: ' + ', '.join(f'configs/{name}' for name in known) + '.'
    return message


def _move_data_root(cfg: Config, new_root: str) -> None:
    old_root = cfg.get('data_root')
    if not old_root:
        raise ValueError(
            f'--cfg-options data_root={new_root} needs a config with a top-level `data_root`, but '
            f'{cfg.filename} has none. Set the paths one by one, for example '
            f'test_dataloader.dataset.data_root={new_root}.'
        )
    # The configs append to it: data_root + 'annotations/...'.
    new_root = new_root.rstrip('/') + '/'
    bare_old_root = old_root.rstrip('/')
    for container, key in _string_entries(cfg._cfg_dict):
        value = container[key]
        if value.rstrip('/') == bare_old_root:
            container[key] = new_root
        elif value.startswith(bare_old_root + '/'):
            container[key] = new_root + value[len(bare_old_root) + 1 :]


def _string_entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key or index) in nested dicts and lists whose value is a string."""
    entries = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    for key, value in entries:
        if isinstance(value, str):
            yield node, key
        elif isinstance(value, (dict, list)):
            yield from _string_entries(value)
