"""Every backend on a GPU: results, gradients, memory, devices, sizes, determinism."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from overlock_mm import ops
from overlock_mm.ops import available_backends, contmix, neighborhood_aggregate
from overlock_mm.ops.contmix import reference
from overlock_mm.ops.contmix.backends import Call
from overlock_mm.ops.depthwise.backends import Call as DepthwiseCall
from tests.ops import depthwise_helpers as depthwise
from tests.ops import helpers
from tests.ops.helpers import LAYOUTS, NAMES, SHAPES, Shape
from tests.tolerances import TOLERANCES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device.'),
]

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ('cuda', 'triton', 'reference')
FUSED = ('cuda', 'triton')
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SCALE = 0.3


@pytest.fixture(params=BACKENDS)
def backend(request):
    return usable(request.param)


@pytest.fixture(params=FUSED)
def fused(request):
    return usable(request.param)


@pytest.fixture(params=['triton'])
def gradients(request):
    """A backend with kernels for the gradients of the depthwise convolution."""
    return usable(request.param)


@pytest.fixture(autouse=True)
def full_precision():
    """The definition in float32 is the measure, so its products must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def usable(name):
    call = Call('contmix', torch.device('cuda'), torch.float32, 5, query_channels=8, regions=49)
    reasons = available_backends(call)[name]
    if reasons:
        pytest.skip(f'Backend {name} cannot run here: {" ".join(reasons)}')
    return name


@pytest.fixture(autouse=True)
def nan_filled():
    """Fresh buffers hold NaN, so that an element that no kernel writes shows."""
    # Only warnings: in float64 the reference calls cuBLAS, which wants a variable set before.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_close(got, expected, name, dtype):
    """Within four tolerances of the activations' dtype; written so that NaN fails.

    One is for the rounding of the result. The others are for the output from which the
    gradients start, which was rounded too, and for products of TF32 numbers.
    """
    assert got.shape == expected.shape, name
    error = (got.double() - expected.double()).abs().max().item()
    bound = 4 * TOLERANCES[dtype] * expected.abs().max().item()
    assert error <= bound, f'{name}: off by {error:.3g}, may be off by {bound:.3g}'


def assert_contmix(shape, dtype, layout, backend, parameter_dtype=None, device='cuda'):
    tensors = helpers.contmix_arguments(
        shape, dtype, layout, device=device, parameter_dtype=parameter_dtype
    )
    k = shape.kernel_size
    out, gradients = helpers.with_gradients(
        lambda *x: contmix(*x, k, scale=SCALE, backend=backend), tensors
    )
    wanted_out, wanted = helpers.with_gradients(
        lambda *x: reference.contmix(*x, k, SCALE), helpers.float64(tensors)
    )
    assert out.dtype == dtype
    assert out.device == tensors[0].device
    assert out.stride() == torch.empty_like(tensors[2]).stride()
    assert_close(out, wanted_out, 'output', dtype)
    for name, tensor, got, expected in zip(NAMES, tensors, gradients, wanted, strict=True):
        assert got.dtype == tensor.dtype, name
        assert_close(got, expected, f'gradient of {name}', dtype)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_contmix(shape, dtype, layout, backend):
    assert_contmix(shape, dtype, layout, backend)


@pytest.mark.parametrize(
    'shape',
    [
        Shape(2, 8, 16, 16, 50, 80, 13),
        Shape(1, 8, 16, 16, 50, 80, 5),
        # Stages 3 and 4 of variant B.
        Shape(1, 16, 16, 16, 50, 80, 13),
        Shape(1, 18, 20, 20, 25, 40, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize('layout', ['channels_last', 'contiguous'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_contmix_at_full_size(shape, dtype, layout, fused):
    assert_contmix(shape, dtype, layout, fused, torch.float32)


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES[3:5], ids=str)
def test_contmix_of_two_sizes(shape, dtype, backend):
    assert_contmix(shape, dtype, 'channels_last', backend)


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_depthwise_of_one_size(op, options, dtype, fused):
    shape = depthwise.Shape(2, 48, 7, 7, 7)
    depthwise.assert_right(shape, op, options, fused, device='cuda', dtype=dtype)


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(dtype, fused):
    tensors = [
        x.detach() for x in helpers.contmix_arguments(SHAPES[1], torch.float32, device='cuda')
    ]
    k = SHAPES[1].kernel_size
    with torch.autocast('cuda', dtype):
        out = contmix(*tensors, k, backend=fused)
    lowered = [x.to(dtype) for x in tensors[:3]]
    assert out.dtype == dtype
    assert torch.equal(out, contmix(*lowered, *tensors[3:], k, backend=fused))


@pytest.mark.smoke
@pytest.mark.parametrize('layout', LAYOUTS)
def test_opcheck(layout, fused):
    tensors = helpers.contmix_arguments(SHAPES[1], torch.float32, layout, device='cuda')
    arguments = (*tensors, SHAPES[1].kernel_size, SCALE, fused)
    torch.library.opcheck(torch.ops.overlock_mm.contmix.default, arguments)
    positional, options = depthwise.arguments(
        depthwise.Shape(2, 48, 7, 7, 7), 'depthwise_conv2d', {}
    )
    x, weight, *_ = (depthwise.to_device(value, 'cuda') for value in positional)
    torch.library.opcheck(
        torch.ops.overlock_mm.depthwise_conv2d.default,
        (x, weight, None, None, None, False, False, 1, fused),
    )


@pytest.mark.smoke
def test_a_captured_step_is_that_of_an_eager_one(fused):
    """Forward and backward in one CUDA graph, replayed on other values."""
    tensors = helpers.contmix_arguments(SHAPES[1], torch.float32, device='cuda')
    k = SHAPES[1].kernel_size

    def step():
        out = contmix(*tensors, k, backend=fused)
        return out, *torch.autograd.grad(out, tensors, torch.ones_like(out))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(tensor.flip(-1))
    graph.replay()
    assert all(map(torch.equal, captured, step()))


@pytest.mark.smoke
def test_two_threads_with_two_windows(fused):
    """What one thread sets for its launch must not reach the other's."""
    problems = []
    for shape in (SHAPES[0], SHAPES[6]):
        tensors = helpers.contmix_arguments(shape, torch.bfloat16, device='cuda')
        tensors = [x.detach() for x in tensors]
        k = shape.kernel_size
        problems.append((tensors, k, contmix(*tensors, k, backend=fused)))

    def repeat(problem):
        tensors, k, expected = problem
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(200):
                assert torch.equal(contmix(*tensors, k, backend=fused), expected)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(repeat, problems))


@pytest.mark.smoke
def test_transforms_reach_the_definition_or_are_refused(fused):
    tensors = [
        x.detach() for x in helpers.contmix_arguments(SHAPES[1], torch.float32, device='cuda')
    ]
    query, *others = tensors
    k = SHAPES[1].kernel_size

    def total(backend):
        return torch.func.grad(lambda q: contmix(q, *others, k, backend=backend).sum())(query)

    assert_close(total(None), total('reference').double(), 'gradient', torch.float32)
    with pytest.raises(RuntimeError, match='has no forward-mode derivative'):
        total(fused)


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [Shape(2, 2, 1, 10, 14, 15, 7), Shape(1, 3, 1, 40, 26, 27, 13)])
def test_neighborhood_aggregate(shape, dtype, layout, dilation, backend):
    tensors = helpers.aggregate_arguments(shape, dtype, layout, device='cuda')
    k = shape.kernel_size
    out, gradients = helpers.with_gradients(
        lambda *x: neighborhood_aggregate(*x, k, dilation=dilation, backend=backend), tensors
    )
    wanted_out, wanted = helpers.with_gradients(
        lambda *x: reference.neighborhood_aggregate(*x, k, dilation), helpers.float64(tensors)
    )
    assert_close(out, wanted_out, 'output', dtype)
    for name, got, expected in zip(('weight', 'value'), gradients, wanted, strict=True):
        assert_close(got, expected, f'gradient of {name}', dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
@pytest.mark.parametrize('shape', depthwise.SHAPES, ids=str)
def test_depthwise(shape, op, options, dtype, fused):
    depthwise.assert_right(shape, op, options, fused, device='cuda', dtype=dtype)


@pytest.mark.parametrize('kernel_size', [3, 7, 13])
@pytest.mark.parametrize('layout', depthwise.LAYOUTS[1:])
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_depthwise_with_any_strides(op, options, layout, kernel_size, fused):
    shape = depthwise.Shape(2, 75, 9, 14, kernel_size)
    depthwise.assert_right(shape, op, options, fused, device='cuda', layout=layout, bias=False)


@pytest.mark.parametrize('shape', [(2, 256, 56, 56, 17), (1, 64, 200, 320, 3)], ids=str)
@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_depthwise_at_full_size(shape, op, options, fused):
    shape = depthwise.Shape(*shape)
    depthwise.assert_right(shape, op, options, fused, device='cuda', dtype=torch.bfloat16)


@pytest.mark.parametrize(('op', 'options'), depthwise.OPTIONS, ids=str)
def test_every_run_of_a_depthwise_operator_gives_the_same_bits(op, options, fused):
    shape = depthwise.Shape(2, 100, 30, 33, 7)
    positional, options = depthwise.arguments(shape, op, options)
    positional = [depthwise.to_device(value, 'cuda') for value in positional]
    options = {name: depthwise.to_device(value, 'cuda') for name, value in options.items()}
    first, *others = (
        depthwise.as_tuple(getattr(ops, op)(*positional, **options, backend=fused))
        for _ in range(5)
    )
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize('layout', ['channels_last', 'contiguous', 'strided'])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('shape', 'dilation'), depthwise.DILATED, ids=str)
def test_gradients_of_depthwise(shape, dilation, dtype, layout, gradients):
    depthwise.assert_gradients(shape, dilation, gradients, 'cuda', dtype, layout)


@pytest.mark.smoke
@pytest.mark.parametrize('shape', [(2, 64, 56, 56, 17), (2, 112, 28, 28, 15), (1, 336, 7, 7, 7)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_gradients_of_depthwise_at_full_size(shape, dtype, gradients):
    depthwise.assert_gradients(depthwise.Shape(*shape), 1, gradients, 'cuda', dtype)


def test_every_run_gives_the_same_bits_of_depthwise_gradients(gradients):
    x = depthwise.normal(4, 96, 30, 33).cuda().requires_grad_()
    weight = depthwise.normal(96, 1, 9, 9).cuda().requires_grad_()

    def run():
        out = ops.depthwise_conv2d(x, weight, dilation=2, backend=gradients)
        return torch.autograd.grad(out.square().sum(), (x, weight))

    first = run()
    for _ in range(5):
        assert all(map(torch.equal, run(), first))


def test_the_order_of_automatic_choice():
    device = torch.device('cuda', 0)
    contmix_call = Call('contmix', device, torch.bfloat16, 13, query_channels=16, regions=49)
    reasons = available_backends(contmix_call)
    assert reasons['triton'] == [] and next(n for n in reasons if not reasons[n]) == 'triton'
    reasons = available_backends(DepthwiseCall('depthwise_conv2d', device, torch.bfloat16))
    assert next(n for n in reasons if not reasons[n]) == 'triton'


@pytest.mark.parametrize('dtype', DTYPES)
def test_every_run_gives_the_same_bits(dtype, fused):
    tensors = helpers.contmix_arguments(
        Shape(2, 4, 16, 16, 40, 40, 13), dtype, device='cuda', parameter_dtype=torch.float32
    )

    def run():
        out, gradients = helpers.with_gradients(
            lambda *x: contmix(*x, 13, scale=SCALE, backend=fused), tensors
        )
        return out, *gradients

    first = run()
    for _ in range(5):
        assert all(map(torch.equal, run(), first))


def test_memory_does_not_grow_with_the_window(fused):
    shape = Shape(1, 8, 16, 16, 100, 160, 13)
    tensors = helpers.contmix_arguments(
        shape, torch.bfloat16, device='cuda', parameter_dtype=torch.float32
    )
    helpers.with_gradients(lambda *x: contmix(*x, 13, backend=fused), tensors)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    helpers.with_gradients(lambda *x: contmix(*x, 13, backend=fused), tensors)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    # Only the weights, which are never stored, in half precision.
    assert extra < 2 * shape.groups * shape.height * shape.width * 13 * 13


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='There is no second CUDA device.')
def test_second_device_while_the_first_is_current(fused):
    assert torch.cuda.current_device() == 0
    assert_contmix(SHAPES[1], torch.float32, 'contiguous', fused, device='cuda:1')
    assert torch.cuda.current_device() == 0


def test_runs_on_the_current_stream(fused):
    tensors = [
        x.detach() for x in helpers.contmix_arguments(SHAPES[1], torch.float32, device='cuda')
    ]
    k = SHAPES[1].kernel_size
    expected = contmix(*tensors, k, backend=fused)
    value = torch.zeros_like(tensors[2])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The kernel must wait for this stream's work: a slow start, then the values.
        torch.cuda._sleep(50_000_000)
        value.copy_(tensors[2])
        out = contmix(*tensors[:2], value, *tensors[3:], k, backend=fused)
    stream.synchronize()
    assert torch.equal(out, expected)


def requires_memory(gigabytes):
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f'This needs {gigabytes} GiB of free GPU memory, {free:.0f} are there.')


@pytest.fixture
def unfilled():
    """No NaN in fresh buffers: filling tens of gigabytes would take longer than the test."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.cuda.empty_cache()


@pytest.mark.large
@pytest.mark.usefixtures('unfilled')
def test_contmix_beyond_2_31_elements(fused):
    # 2.2e9 values. Both ends of the batch must agree with a small call on copies of them.
    requires_memory(40)
    batch, groups, channels, height, width, k = 1050, 2, 32, 256, 128, 3
    assert batch * groups * channels * height * width > 2**31
    generator = torch.Generator('cuda').manual_seed(0)

    def normal(*sizes, dtype=torch.bfloat16):
        return torch.randn(sizes, generator=generator, device='cuda', dtype=dtype)

    query = normal(1, groups, 8, height, width).expand(batch, -1, -1, -1, -1)
    key = normal(1, groups, 8, 4).expand(batch, -1, -1, -1)
    value = torch.zeros(batch, groups, channels, height, width, device='cuda', dtype=torch.bfloat16)
    ends = [0, batch - 1]
    for end in ends:
        value[end] = normal(groups, channels, height, width)
    value.requires_grad_()
    parameters = [
        normal(k * k, 4, dtype=torch.float32),
        normal(k * k, dtype=torch.float32),
        normal(groups, 2 * k - 1, 2 * k - 1, dtype=torch.float32),
    ]
    grad_out = torch.zeros_like(value)
    for end in ends:
        grad_out[end] = normal(groups, channels, height, width)

    out = contmix(query, key, value, *parameters, k, backend=fused)
    (d_value,) = torch.autograd.grad(out, value, grad_out)
    small = value.detach()[ends].requires_grad_()
    wanted = contmix(query[ends], key[ends], small, *parameters, k, backend=fused)
    (d_small,) = torch.autograd.grad(wanted, small, grad_out[ends])
    assert wanted.abs().max() > 0
    assert_close(out[ends], wanted, 'output', torch.bfloat16)
    assert_close(d_value[ends], d_small, 'gradient of value', torch.bfloat16)
    assert not out[1:-1].any()


@pytest.mark.large
@pytest.mark.usefixtures('unfilled')
def test_neighborhood_aggregate_beyond_2_31_elements(fused):
    requires_memory(40)
    batch, groups, channels, side, k = 1050, 2, 64, 128, 3
    assert batch * groups * channels * side * side > 2**31
    weight = torch.rand(1, groups, side, side, k * k, device='cuda', dtype=torch.bfloat16)
    weight = weight.expand(batch, -1, -1, -1, -1)
    value = torch.zeros(batch, groups, side, side, channels, device='cuda', dtype=torch.bfloat16)
    ends = [0, batch - 1]
    for end in ends:
        value[end].normal_()
    value.requires_grad_()
    out = neighborhood_aggregate(weight, value, k, backend=fused)
    (d_value,) = torch.autograd.grad(out, value, value.detach())
    small = value.detach()[ends].requires_grad_()
    wanted = neighborhood_aggregate(weight[ends], small, k, backend=fused)
    (d_small,) = torch.autograd.grad(wanted, small, small.detach())
    assert wanted.abs().max() > 0
    assert_close(out[ends], wanted, 'output', torch.bfloat16)
    assert_close(d_value[ends], d_small, 'gradient of value', torch.bfloat16)


MEMCHECK = """
import sys, torch
from overlock_mm.ops import contmix, neighborhood_aggregate
from tests.ops import depthwise_helpers, helpers
backend = sys.argv[1]
for shape in helpers.SHAPES:
    tensors = helpers.contmix_arguments(shape, torch.bfloat16, 'strided', device='cuda')
    helpers.with_gradients(lambda *x: contmix(*x, shape.kernel_size, backend=backend), tensors)
    tensors = helpers.aggregate_arguments(shape, torch.float32, device='cuda')
    helpers.with_gradients(
        lambda *x: neighborhood_aggregate(*x, shape.kernel_size, backend=backend), tensors)
for shape in depthwise_helpers.SHAPES:
    for op, options in depthwise_helpers.OPTIONS:
        depthwise_helpers.assert_right(shape, op, options, backend, device='cuda')
torch.cuda.synchronize()
"""


@pytest.mark.sanitizer
@pytest.mark.skipif(
    shutil.which('compute-sanitizer') is None, reason='compute-sanitizer is not on the PATH.'
)
@pytest.mark.parametrize('tool', ['memcheck', 'racecheck'])
def test_compute_sanitizer_finds_nothing(fused, tool):
    if (fused, tool) == ('triton', 'racecheck'):
        pytest.skip("Triton's own reductions are reported as races.")
    result = subprocess.run(
        [
            *('compute-sanitizer', '--tool', tool, '--error-exitcode', '9'),
            *('--report-api-errors', 'no'),  # those of torch, which handles them
            *(sys.executable, '-c', MEMCHECK, fused),
        ],
        cwd=ROOT,
        # Without torch's caching a stray access leaves its tensor, not only its element.
        env={**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
