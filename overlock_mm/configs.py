"""The configs that come with the package, for the tools and for other projects.

A config of another project inherits one of them by its name or by its path::

    _base_ = 'overlock_mm::detection/cascade_overlock_s.py'   # after `import overlock_mm`

    # Without an import before, for example in the tools of mmdet:
    configs = __import__('overlock_mm.configs').configs
    _base_ = configs.config_path('detection/cascade_overlock_s.py')
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

#: The folder with detection/, segmentation/, classification/, demo/ and _base_/.
CONFIG_ROOT = Path(__file__).resolve().parent / '.mim' / 'configs'

_PACKAGE = 'overlock_mm'


def list_configs() -> list[str]:
    """Return names of all configs, such as ``detection/cascade_overlock_s.py``."""
    return sorted(
        path.relative_to(CONFIG_ROOT).as_posix()
        for path in CONFIG_ROOT.glob('*/*.py')
        if not path.parent.name.startswith('_')
    )


def config_path(name: str) -> str:
    """Absolute path of a config, or of a part of one below ``_base_/``.

    Args:
        name: A name from :func:`list_configs`.

    Raises:
        FileNotFoundError: There is none; the message names the near ones.
    """
    path = CONFIG_ROOT / name
    if not path.is_file():
        near = difflib.get_close_matches(name, list_configs(), n=3, cutoff=0.5)
        hint = f' Near ones: {", ".join(near)}.' if near else ''
        raise FileNotFoundError(f'overlock_mm has no config {name!r}.{hint}')
    return str(path)


def allow_package_names() -> None:
    """Let mmengine find configs as ``overlock_mm::FOLDER/NAME.py``; called on import.

    An entry in its table of packages is all that :func:`mmengine.hub.get_config` needs. For
    ``_base_``, mmengine also makes the package's name the registry scope of everything inherited,
    and no part of our configs is in a registry of this package: they are mmdet's, mmseg's and
    mmpretrain's. So names of ours are resolved here.

    Names such as ``mmseg::...`` are found, too, where mmengine looks for a distribution of another
    name (``mmsegmentation`` instead of ``onedl-mmsegmentation``).
    """
    if _PACKAGE in MODULE2PACKAGE:
        return
    MODULE2PACKAGE[_PACKAGE] = _PACKAGE
    resolve = Config._get_cfg_path

    def resolve_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        scope, separator, name = cfg_path.partition('::')
        if separator and scope == _PACKAGE:
            return config_path(name), None
        try:
            return resolve(cfg_path, filename)
        except ModuleNotFoundError:
            path = _installed_config(scope, name)
            if path is None:
                raise
            return path, scope

    Config._get_cfg_path = staticmethod(resolve_ours)


def _installed_config(module: str, name: str) -> str | None:
    """Path of a config that an installed package brings along."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, '.mim', 'configs', name)
        if path.is_file():
            return str(path)
    return None
