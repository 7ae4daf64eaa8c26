"""How the operators are tested: the same inputs for the stand-in, mmcv's own and a definition."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import mmcv.ops  # noqa: F401
import pytest
import torch
from mmcv import _ext as installed

from overlock_mm.mmcv_ops.finder import EXTENSION, _StandInLoader, is_stand_in

Inputs = dict[str, Any]
Outputs = dict[str, Any]

#: Off by so much of the largest value at most, from a definition in float64.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3}
#: From mmcv's kernels, whose own sums in half precision are that far off.
COMPILED_TOLERANCES = TOLERANCES | {torch.float64: 1e-6, torch.float16: 3e-2}


@dataclass(frozen=True)
class Family:
    """Operators that belong together.

    Attributes:
        call: Runs them with an extension module; outputs and gradients by name.
        define: The same by a definition, from inputs in float64.
        cases: Inputs by name, made from a seeded generator; floating-point ones in float64.
        on_cpu: The dtypes for which mmcv's CPU kernels exist.
        undefined: Cases in which mmcv's kernels part from the definition, and why.
    """

    name: str
    call: Callable[[ModuleType, Inputs], Outputs]
    define: Callable[[Inputs], Outputs]
    cases: dict[str, Callable[[torch.Generator], Inputs]]
    on_cpu: tuple[torch.dtype, ...] = ()
    undefined: dict[str, str] = field(default_factory=dict)

    def inputs(self, case: str, dtype: torch.dtype, device: str = 'cpu') -> Inputs:
        inputs = self.cases[case](torch.Generator().manual_seed(sum(map(ord, case))))
        return {name: _cast(value, dtype, device) for name, value in inputs.items()}

    def defined(self, inputs: Inputs) -> Outputs:
        return self.define({name: _cast(value, torch.float64) for name, value in inputs.items()})


def _cast(value: Any, dtype: torch.dtype, device: str = 'cpu') -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def stand_in() -> ModuleType:
    """The module that would be ``mmcv._ext``, also where the compiled one is."""
    module = ModuleType(EXTENSION)
    _StandInLoader().exec_module(module)
    return module


def compiled(device: str = 'cpu') -> ModuleType:
    """mmcv's own extension, or the test is skipped."""
    if is_stand_in(installed):
        pytest.skip('this mmcv has no compiled operators to compare with')
    if device == 'cuda' and installed.get_compiling_cuda_version() == 'not available':
        pytest.skip('this mmcv was compiled without CUDA')
    return installed


@contextmanager
def operators_of(extension: ModuleType):
    """Let the Python part of mmcv call another extension."""
    users = [
        module
        for name, module in sys.modules.items()
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module')
    ]
    before = {module: module.ext_module for module in users}
    try:
        for module in users:
            module.ext_module = extension
        yield
    finally:
        for module, own in before.items():
            module.ext_module = own


def assert_same(actual: Outputs, expected: Outputs, tolerance: float) -> None:
    """Whole numbers are equal; others are as near as the tolerance, relative to the largest."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        wanted = expected[name]
        if not isinstance(value, torch.Tensor):
            assert value == wanted, name
            continue
        value, wanted = value.detach().cpu(), wanted.detach().cpu()
        assert value.shape == wanted.shape, name
        if not wanted.is_floating_point():
            assert value.tolist() == wanted.tolist(), name
        elif value.numel():
            off = (value.double() - wanted.double()).abs().max().item()
            bound = tolerance * max(wanted.abs().max().item(), 1e-3)
            assert off <= bound, f'{name}: off by {off:.3g}, may be off by {bound:.3g}'
