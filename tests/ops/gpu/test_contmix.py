"""ContMix on a GPU: results, gradients, memory, streams, devices, sizes, determinism."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from overlock_mm.ops import contmix
from overlock_mm.ops.contmix import reference
from tests.ops import helpers
from tests.ops.gpu.helpers import DTYPES, ON_GPU, assert_close, requires_memory
from tests.ops.helpers import LAYOUTS, NAMES, SHAPES, Shape

pytestmark = ON_GPU
SCALE = 0.3


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
