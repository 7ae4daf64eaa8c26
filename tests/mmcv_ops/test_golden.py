"""What mmcv's compiled operators once gave, where there are none to compare with."""

import math

import mmdet
import pytest
import torch

from tests.mmcv_ops import golden
from tests.mmcv_ops.families import COMPILED_TOLERANCES, assert_same, operators_of, stand_in
from tests.mmcv_ops.networks import NETWORKS, run
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
    assert_as_then(outputs, then['outputs'], COMPILED_TOLERANCES[torch.float32])


@pytest.mark.parametrize('name', NETWORKS)
def test_losses_and_scores_that_a_compiled_mmcv_gave(name):
    then = golden.read()['versions']['mmdet']
    if mmdet.__version__ != then:
        pytest.skip(f'The values are those of mmdet {then}.')
    with operators_of(stand_in()):
        outputs = golden.losses_and_scores(run(NETWORKS[name]))
    assert outputs
    assert_as_then(outputs, golden.read()[name], 1e-3)


def assert_as_then(outputs, then, tolerance):
    assert outputs.keys() == then.keys()
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            expected = torch.tensor(then[name], dtype=value.dtype)
            assert_same({name: golden.thin(value)}, {name: expected}, tolerance)
        else:
            assert value == then[name]
