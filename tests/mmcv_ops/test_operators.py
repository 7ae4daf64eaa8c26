"""Every operator, in every case: against its definition, mmcv's kernels and what they once gave."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.mmcv_ops import deform, focal_loss, nms, roi, sync_bn, windows
from tests.mmcv_ops.families import (
    COMPILED_TOLERANCES,
    TOLERANCES,
    assert_same,
    compiled,
    stand_in,
)

FAMILIES = [
    family
    for module in (deform, focal_loss, nms, roi, sync_bn, windows)
    for family in module.FAMILIES
]
CASES = [
    pytest.param(family, case, id=f'{family.name}-{case}')
    for family in FAMILIES
    for case in family.cases
]
DTYPES = pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device.'),
)
DEVICES = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=CUDA)])


@DEVICES
@DTYPES
@pytest.mark.parametrize(('family', 'case'), CASES)
def test_the_definition(family, case, dtype, device):
    inputs = family.inputs(case, dtype, device)
    expected = family.defined(inputs)
    assert_same(family.call(stand_in(), inputs), expected, TOLERANCES[dtype])


#: With kernels of mmcv's for the CPU that agree with the definition.
COMPILED_CASES = [
    (family, case)
    for family in FAMILIES
    for case in family.cases
    if family.on_cpu and case not in family.undefined
]


@pytest.mark.parametrize(
    ('family', 'case', 'dtype'),
    [
        pytest.param(family, case, dtype, id=f'{family.name}-{case}-{dtype}')
        for family, case in COMPILED_CASES
        for dtype in family.on_cpu
    ],
)
def test_the_kernels_of_mmcv(family, case, dtype):
    inputs = family.inputs(case, dtype)
    expected = family.call(compiled(), inputs)
    assert_same(family.call(stand_in(), inputs), expected, COMPILED_TOLERANCES[dtype])


@pytest.mark.parametrize('device', [pytest.param('cuda', marks=CUDA)])
@pytest.mark.parametrize(('family', 'case'), CASES)
def test_the_cuda_kernels_of_mmcv(family, case, device):
    if case in family.undefined:
        pytest.skip(family.undefined[case])
    inputs = family.inputs(case, torch.float32, device)
    expected = family.call(compiled(device), inputs)
    assert_same(family.call(stand_in(), inputs), expected, COMPILED_TOLERANCES[torch.float32])


#: The shapes of their results follow from those of their arguments.
WITHOUT_VALUES = (
    'deform_conv',
    'modulated_deform_conv',
    'sigmoid focal loss',
    'softmax focal loss',
    'bbox_overlaps',
    'roi_align, averages',
    'sync_bn',
    'carafe',
    'carafe_naive',
    'psamask, collecting',
    'psamask, distributing',
)


def fake_cuda_tensors_work():
    """Whether fake CUDA tensors need no driver: those of torch 2.6 do."""
    try:
        with FakeTensorMode():
            torch.empty(1, device='cuda').copy_(torch.empty(1, device='cuda'))
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(
    not fake_cuda_tensors_work(), reason='Fake CUDA tensors of this torch need a CUDA driver.'
)
@pytest.mark.parametrize('name', WITHOUT_VALUES)
def test_tensors_of_two_devices_are_not_mixed(name):
    """Seen without a GPU, too, by tensors that have shapes and devices only."""
    (family,) = (family for family in FAMILIES if family.name == name)
    inputs = family.inputs(next(iter(family.cases)), torch.float16)
    with FakeTensorMode():
        on_gpu = {
            name: torch.empty(value.shape, dtype=value.dtype, device='cuda')
            if isinstance(value, torch.Tensor)
            else value
            for name, value in inputs.items()
        }
        outputs = family.call(stand_in(), on_gpu)
    assert {value.device.type for value in outputs.values()} == {'cuda'}
