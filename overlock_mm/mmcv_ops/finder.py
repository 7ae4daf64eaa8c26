"""Provides the replacement for ``mmcv._ext`` where mmcv's own is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

#: The module that mmcv's Python part loads its operators from.
EXTENSION = 'mmcv._ext'


class _StandInLoader(Loader):
    """Fills the module. Torchvision and the operators are imported only then."""

    def exec_module(self, module: ModuleType) -> None:
        from overlock_mm.mmcv_ops.operators import OPERATORS

        module.__doc__ = 'Operators of mmcv by torchvision and PyTorch, see overlock_mm.mmcv_ops.'
        for name, operator in OPERATORS.items():
            setattr(module, name, operator)
        # mmcv asks, when imported, for each of its operators with `hasattr`.
        module.__getattr__ = _missing_operator  # type: ignore[method-assign]


class _StandInFinder(MetaPathFinder):
    """Finds ``mmcv._ext`` only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        return ModuleSpec(fullname, _StandInLoader(), origin='overlock_mm.mmcv_ops')


def _missing_operator(name: str) -> Callable[..., NoReturn]:
    """Return what the stand-in has under a name that it does not implement."""
    if name.startswith('_'):
        raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        from overlock_mm.mmcv_ops.remedies import about

        raise NotImplementedError(
            f"mmcv's operator {name!r} was called. This mmcv has no compiled operators, and those "
            'that overlock_mm offers in their place are what mmdet, mmseg and mmpretrain use. '
            + about(name)
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def offer_operators() -> None:
    """Let ``import mmcv._ext`` find the stand-in if it finds nothing else; called on import.

    Imports nothing. The finder stands at the end of ``sys.meta_path``, so that it is asked only
    where mmcv has no such module: one that is there and fails to load keeps its own error.
    """
    if not any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandInFinder())


def is_stand_in(module: ModuleType) -> bool:
    """Return whether an imported ``mmcv._ext`` is the stand-in, and not compiled."""
    return module.__spec__ is not None and isinstance(module.__spec__.loader, _StandInLoader)
