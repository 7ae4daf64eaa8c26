"""The configs that come with the package, for the tools and for other projects.

A config of another project inherits one of them in any of these ways::

    _base_ = 'overlock_mm::detection/cascade_overlock_s.py'   # after `import overlock_mm`

    with read_base():                                         # mmengine's pure-Python style
        from overlock_mm.configs.detection.cascade_overlock_s import *

    # Without an import before, for example in the tools of mmdet:
    _base_ = __import__('overlock_mm.configs').configs.config_path('detection/cascade_overlock_s.py')
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from mmengine.config import Config

#: The folder with detection/, segmentation/, classification/, demo/ and _base_/.
CONFIG_ROOT = Path(__file__).resolve().parents[1] / '.mim' / 'configs'

_PREFIX = 'overlock_mm::'


def list_configs() -> list[str]:
    """Names of all configs, such as ``detection/cascade_overlock_s.py``."""
    return sorted(
        path.relative_to(CONFIG_ROOT).as_posix()
        for path in CONFIG_ROOT.glob('*/*.py')
        if not path.parent.name.startswith('_')
    )


def config_path(name: str) -> str:
    """Absolute path of a config, or of a part of one below ``_base_/``.

    Args:
        name: As :func:`list_configs` gives it.

    Raises:
        FileNotFoundError: There is none; the message names the near ones.
    """
    path = CONFIG_ROOT / name
    if not path.is_file():
        near = difflib.get_close_matches(name, list_configs(), n=3, cutoff=0.5)
        hint = f' Near ones: {", ".join(near)}.' if near else ''
        raise FileNotFoundError(f'overlock_mm has no config {name!r}.{hint}')
    return str(path)


def allow_package_bases() -> None:
    """Let ``_base_`` name a config as ``overlock_mm::FOLDER/NAME.py``; called on import.

    mmengine knows such names for a fixed list of packages only. An entry in that list would not
    do: it also makes the package's name the registry scope of all that is inherited, and the parts
    of our configs are those of mmdet, mmseg and mmpretrain.

    Names such as ``mmseg::...`` are found, too, where mmengine looks for a distribution of another
    name (``mmsegmentation`` instead of ``onedl-mmsegmentation``).
    """
    resolve = Config._get_cfg_path
    if getattr(resolve, 'knows_overlock_mm', False):
        return

    def resolve_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(_PREFIX):
            return config_path(cfg_path.removeprefix(_PREFIX)), None
        try:
            return resolve(cfg_path, filename)
        except ModuleNotFoundError:
            scope, _, name = cfg_path.partition('::')
            path = _installed_config(scope, name)
            if path is None:
                raise
            return path, scope

    resolve_ours.knows_overlock_mm = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(resolve_ours)


def _installed_config(module: str, name: str) -> str | None:
    """Path of a config that an installed package brings along."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, '.mim', 'configs', name)
        if path.is_file():
            return str(path)
    return None
