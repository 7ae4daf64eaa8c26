"""What mmcv's compiled operators once gave, where there are none to compare with."""

import math

import pytest
import torch

from tests.mmcv_ops import golden
from tests.mmcv_ops.families import COMPILED_TOLERANCES, assert_same, stand_in
from tests.mmcv_ops.test_operators import COMPILED_CASES


@pytest.mark.parametrize(
    ('family', 'case'),
    [pytest.param(family, case, id=f'{family.name}-{case}') for family, case in COMPILED_CASES],
)
def test_what_the_kernels_of_mmcv_gave(family, case):
    inputs = family.inputs(case, torch.float32)
    then = golden.read()[f'{family.name}: {case}']
    remedy = 'The inputs are new: run python -m tests.mmcv_ops.golden with a compiled mmcv.'
    assert math.isclose(golden.digest(inputs), then['inputs'], rel_tol=1e-6, abs_tol=1e-3), remedy
    outputs = family.call(stand_in(), inputs)
    for name, value in outputs.items():
        expected = then['outputs'][name]
        if isinstance(value, torch.Tensor):
            few = golden.thin(value)
            expected = torch.tensor(expected, dtype=value.dtype)
            assert_same({name: few}, {name: expected}, COMPILED_TOLERANCES[torch.float32])
        else:
            assert value == expected
