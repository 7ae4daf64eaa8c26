"""Backends of the CPU against the definition, outputs and all gradients."""

import os
import platform
import resource

import pytest
import torch

from overlock_mm.ops import available_backends, contmix, extension, neighborhood_aggregate
from overlock_mm.ops.contmix import reference
from overlock_mm.ops.contmix.backends import Call
from tests.ops import helpers
from tests.ops.helpers import LAYOUTS, SHAPES, Shape
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures('nan_filled')

needs_extension = pytest.mark.skipif(
    extension.why_not_loaded() is not None,
    reason=f'Backend cpu is not there: {extension.why_not_loaded()}',
)
BACKENDS = ('reference', pytest.param('cpu', marks=needs_extension))
SCALE = 0.3


def assert_contmix(shape, dtype, layout, backend, parameter_dtype=None):
    tensors = helpers.contmix_arguments(shape, dtype, layout, parameter_dtype=parameter_dtype)
    k = shape.kernel_size
    actual = helpers.with_gradients(
        lambda *x: contmix(*x, k, scale=SCALE, backend=backend), tensors
    )
    expected = helpers.with_gradients(
        lambda *x: reference.contmix(*x, k, SCALE), helpers.float64(tensors)
    )
    assert actual[0].dtype == dtype
    assert actual[0].stride() == torch.empty_like(tensors[2]).stride()
    assert_close(actual[0], expected[0], 'output')
    for name, tensor, got, wanted in zip(
        helpers.NAMES, tensors, actual[1], expected[1], strict=True
    ):
        assert got.dtype == tensor.dtype, name
        assert_close(got, wanted, f'gradient of {name}')


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_contmix(shape, dtype, backend):
    assert_contmix(shape, dtype, 'contiguous', backend)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', LAYOUTS[1:])
@pytest.mark.parametrize('shape', [SHAPES[1], SHAPES[6]], ids=str)
def test_contmix_takes_any_strides(shape, layout, dtype, backend):
    assert_contmix(shape, dtype, layout, backend)


@needs_extension
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_contmix_of_adjacent_channels_in_bfloat16(shape):
    """Where the processor multiplies pairs, these are aggregated in pairs of columns."""
    assert_contmix(shape, torch.bfloat16, 'channels_last', 'cpu')


@pytest.mark.parametrize('backend', BACKENDS)
def test_parameters_may_be_float32_where_activations_are_not(backend):
    assert_contmix(SHAPES[1], torch.bfloat16, 'contiguous', backend, torch.float32)


def assert_aggregate(shape, dilation, dtype, layout, backend):
    tensors = helpers.aggregate_arguments(shape, dtype, layout)
    k = shape.kernel_size
    actual = helpers.with_gradients(
        lambda *x: neighborhood_aggregate(*x, k, dilation=dilation, backend=backend), tensors
    )
    expected = helpers.with_gradients(
        lambda *x: reference.neighborhood_aggregate(*x, k, dilation), helpers.float64(tensors)
    )
    assert_close(actual[0], expected[0], 'output')
    for name, got, wanted in zip(('weight', 'value'), actual[1], expected[1], strict=True):
        assert_close(got, wanted, f'gradient of {name}')


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_neighborhood_aggregate(shape, dtype, backend):
    assert_aggregate(shape, 1, dtype, 'contiguous', backend)


#: Maps that the dilation divides, that it does not, and that are as small as it allows.
DILATED = (
    (Shape(1, 2, 1, 8, 12, 16, 3), 2),
    (Shape(2, 1, 1, 10, 17, 19, 3), 3),
    (Shape(1, 2, 1, 7, 53, 15, 5), 3),
    (Shape(1, 1, 1, 16, 26, 27, 13), 2),
)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('shape', 'dilation'), DILATED, ids=str)
def test_dilated_aggregate(shape, dilation, layout, backend):
    assert_aggregate(shape, dilation, torch.float32, layout, backend)


@pytest.mark.parametrize('backend', BACKENDS)
def test_empty_batch(backend):
    shape = SHAPES[0]._replace(batch=0)
    assert_contmix(shape, torch.float32, 'contiguous', backend)
    assert_aggregate(shape, 1, torch.float32, 'contiguous', backend)


@needs_extension
def test_results_do_not_depend_on_the_number_of_threads():
    tensors = helpers.contmix_arguments(Shape(1, 2, 8, 8, 50, 20, 7), torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            out, gradients = helpers.with_gradients(
                lambda *x: contmix(*x, 7, backend='cpu'), tensors
            )
            results.append((out, *gradients))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_extension
def test_large_logits():
    """The softmax of logits of some thousands neither overflows nor loses its sum."""
    tensors = helpers.contmix_arguments(SHAPES[1], torch.float32)
    tensors = [x.detach() * 30 for x in tensors]
    out = contmix(*tensors, 5, backend='cpu')
    expected = reference.contmix(*(x.double() for x in tensors), 5, 1.0)
    # Logits of that size carry the rounding of float32.
    assert (out - expected).abs().max() <= 2e-3 * expected.abs().max()


@needs_extension
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_broken_values_stay_in_the_windows_that_hold_them(value, dtype):
    for column in range(5):
        arguments = helpers.contmix_arguments(SHAPES[0], dtype, 'channels_last')
        tensors = [x.detach() for x in arguments]
        tensors[2][0, 0, 0, 0, column] = value
        finite = contmix(*tensors, 3, backend='cpu').isfinite()
        # Windows of the first tokens begin at the border.
        window = finite[0, 0, 0, :2, max(0, column - 1) if column > 2 else 0 : column + 2]
        assert not window.any()
        window.fill_(True)
        assert finite.all()


RUN_TABLE = """
import torch
from tests.ops.test_cpu_backends import assert_aggregate, assert_contmix, DILATED
from tests.ops.helpers import SHAPES
print(torch.backends.cpu.get_cpu_capability())
for shape in SHAPES:
    for dtype in (torch.float32, torch.float64):
        assert_contmix(shape, dtype, 'contiguous', 'cpu')
for shape, dilation in DILATED:
    assert_aggregate(shape, dilation, torch.float32, 'contiguous', 'cpu')
"""


@needs_extension
@pytest.mark.parametrize('capability', ['default', 'avx2'])
@pytest.mark.slow
def test_kernels_of_other_instruction_sets(capability):
    """This process runs the widest kernels that the machine has; others run the rest."""
    helpers.run_with_kernels(RUN_TABLE, capability)


RUN_BFLOAT16 = """
import torch
from tests.ops.test_cpu_backends import assert_contmix
from tests.ops.helpers import SHAPES
print(torch.backends.cpu.get_cpu_capability())
for shape in SHAPES:
    assert_contmix(shape, torch.bfloat16, 'channels_last', 'cpu')
"""


@needs_extension
@helpers.needs_avx512
@pytest.mark.slow
def test_bfloat16_without_products_of_pairs():
    """The kernels of AVX-512, where this process may run those of AVX512_BF16."""
    helpers.run_with_kernels(RUN_BFLOAT16, 'avx512')


@needs_extension
def test_cpu_backend_can_run_on_this_machine():
    call = Call('contmix', torch.device('cpu'), torch.float32, 13, query_channels=16, regions=49)
    assert available_backends(call)['cpu'] == []


@needs_extension
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='The allocator is another one.')
@pytest.mark.skipif(
    any(
        name.startswith('MALLOC_') or name in ('GLIBC_TUNABLES', 'ASAN_OPTIONS')
        for name in os.environ
    ),
    reason='The allocator has settings, or is that of a sanitizer.',
)
def test_freed_memory_stays_in_the_process():
    """Blocks that take the place of freed ones cause few page faults."""
    size, rounds = 16 << 20, 16
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(size, dtype=torch.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < rounds / 2 * size / resource.getpagesize()
