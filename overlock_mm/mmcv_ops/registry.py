"""Registry of the replacement's operators."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor

from overlock_mm.mmcv_ops.remedies import torchvision_for

P = ParamSpec('P')
R = TypeVar('R')

#: All operators by name, complete once :mod:`overlock_mm.mmcv_ops.operators` is imported.
OPERATORS: dict[str, Callable[..., Any]] = {}
#: What they belong to, by name.
FAMILIES: dict[str, Family] = {}


@dataclass(frozen=True)
class Family:
    """Operators that serve the same functions and layers of ``mmcv.ops``.

    Attributes:
        serves: Names of these.
        library: 'torchvision' if its kernels do the work, else 'torch'.
        differs: Where results part from those of mmcv's kernels; empty if nowhere.
    """

    serves: tuple[str, ...]
    library: str
    differs: str = ''

    def operator(self, function: Callable[P, R]) -> Callable[P, R]:
        """Enter a function, with mmcv's name and signature, in :data:`OPERATORS`.

        Like compiled code it then runs without autograd, which mmcv defines around its operators,
        and without autocast: its dtypes are those of its arguments.
        """

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            _say_once()
            kinds = {value.device.type for value in args if isinstance(value, Tensor)}
            with torch.no_grad():
                for kind in kinds:
                    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                        with torch.autocast(kind, enabled=False):
                            return function(*args, **kwargs)
                return function(*args, **kwargs)

        OPERATORS[function.__name__] = run
        FAMILIES[function.__name__] = self
        return run


@functools.cache
def _say_once() -> None:
    """Log the origin of the operators at first use in a run."""
    print_log(
        'This mmcv has no compiled operators: overlock_mm computes them with torchvision and '
        'PyTorch. `python -m overlock_mm.doctor` lists which.',
        logger='current',
    )


def torchvision_operator(name: str) -> Callable[..., Any]:
    """Return a compiled operator of torchvision.

    Raises:
        RuntimeError: torchvision is missing or does not match torch.
    """
    return getattr(_torchvision_namespace(), name)


@functools.cache
def _torchvision_namespace() -> Any:
    try:
        importlib.import_module('torchvision')
        torch.ops.torchvision.roi_align  # noqa: B018
    # Without the package; with one for another torch, whose binary registers nothing.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise RuntimeError(
            f"mmcv's operators need torchvision's, which do not work here: {error}. "
            f'Remedy: {torchvision_for(importlib.metadata.version("torch"))}'
        ) from error
    return torch.ops.torchvision


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors, detached, in one dtype for sums: float64 if one has it, else float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.detach().to(dtype) for tensor in tensors)
