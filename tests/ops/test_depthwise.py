"""The depthwise operators: backends against the definition in float64, and what torch knows."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from overlock_mm import ops
from overlock_mm.ops import available_backends, extension, selection
from overlock_mm.ops.depthwise.backends import BACKENDS, Call
from tests.ops import helpers
from tests.ops.depthwise_helpers import (
    DEFAULTS,
    DILATED,
    EPS,
    LAYOUTS,
    OPTIONS,
    SHAPES,
    Shape,
    arguments,
    as_tuple,
    assert_gradients,
    assert_right,
    expected_of,
    normal,
)
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures('nan_filled')

needs_extension = pytest.mark.skipif(
    extension.why_not_loaded() is not None,
    reason=f'Backend cpu is not there: {extension.why_not_loaded()}',
)
NAMES = ('reference', pytest.param('cpu', marks=needs_extension))


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_against_the_definition(shape, op, options, dtype, backend):
    assert_right(shape, op, options, backend, dtype=dtype)


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize('layout', LAYOUTS[1:])
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_any_strides_and_no_bias(op, options, layout, backend):
    assert_right(SHAPES[2], op, options, backend, layout=layout, bias=False)


@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_an_empty_batch(op, options):
    positional, options = arguments(SHAPES[1]._replace(batch=0), op, options)
    for result in as_tuple(getattr(ops, op)(*positional, **options)):
        assert result.shape[:2] == (0, 16)


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_half_precision_of_the_reference(op, options, dtype):
    positional, options = arguments(SHAPES[1], op, options, dtype=dtype)
    positional[1:] = [x.float() if isinstance(x, torch.Tensor) else x for x in positional[1:]]
    options = {
        k: v.float() if isinstance(v, torch.Tensor) and k != 'addend' else v
        for k, v in options.items()
    }
    results = as_tuple(getattr(ops, op)(*positional, **options, backend='reference'))
    for result, wanted in zip(results, expected_of(op, positional, options), strict=True):
        assert result.dtype == (dtype if result.dim() == 4 else torch.float32)
        # Activations between the steps are rounded too.
        bound = 4 * TOLERANCES[dtype] * wanted.abs().max()
        assert (result.double() - wanted).abs().max() <= bound


@needs_extension
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_half_precision_is_rounded_once(op, options, dtype):
    """Only a result that goes to memory is rounded."""
    for shape in SHAPES:
        assert_right(shape, op, options, 'cpu', dtype=dtype)


@needs_extension
@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_maps_of_all_heights_in_bfloat16(kernel_size):
    """Where rows are multiplied in pairs, odd and even numbers of them begin anywhere."""
    for height in range(1, kernel_size + 4):
        shape = Shape(2, 20, height, 9, kernel_size)
        assert_right(shape, 'depthwise_conv2d', {}, 'cpu', dtype=torch.bfloat16)


def assert_rounded(dtype, flushed):
    """Numbers of all kinds times some factors, as torch rounds them.

    With ``flushed``, those below the smallest normal number may count as zero.
    """
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    # Zeros between them: a broken number spreads over its window.
    x = torch.zeros(1, 64, 1, 2048, dtype=dtype)
    x[..., ::2] = numbers.view(1, 64, 1, 1024)
    for factor in (1.0, 0.7, 3.1, 2.0**-10):
        weight = torch.zeros(64, 1, 3, 3, dtype=dtype)
        weight[..., 1, 1] = factor
        got = ops.depthwise_conv2d(x, weight, backend='cpu')[..., ::2]
        wanted = (x.float() * weight[0, 0, 1, 1].float()).to(dtype)[..., ::2]
        atol = max(1, factor) * torch.finfo(dtype).tiny if flushed else 0
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol, equal_nan=True)


@needs_extension
@pytest.mark.parametrize('dtype', HALVES)
def test_rounding_of_half_precision(dtype):
    assert_rounded(dtype, flushed=dtype == torch.bfloat16)


@needs_extension
@pytest.mark.parametrize(('op', 'options'), OPTIONS[3:], ids=str)
def test_a_map_beyond_the_caches(op, options):
    """Its rows are packed where those of smaller maps are read in place."""
    assert_right(Shape(1, 256, 46, 47, 3), op, options, 'cpu')


def assert_gelu_within(bound, dtype):
    """Off by a part of |x| at most, for all magnitudes; sums of the statistic are in float32."""
    x = torch.cat([torch.linspace(-12, 12, 200_000), torch.logspace(-30, 38, 2_000)])
    x = x.clamp(max=torch.finfo(dtype).max).to(dtype)
    x = torch.cat([x, -x])
    identity = torch.zeros(1, 1, 3, 3, dtype=dtype)
    identity[..., 1, 1] = 1
    _, out = ops.depthwise_conv2d_stats(
        x.view(-1, 1, 1, 1), identity, gelu_input=True, stat='mean', backend='cpu'
    )
    error = (out.flatten().double() - F.gelu(x.double())).abs()
    assert (error <= bound * x.double().abs()).all()


@needs_extension
@pytest.mark.parametrize(
    ('bound', 'dtype'), [(2e-7, torch.float32), (4e-6, torch.float16), (4e-6, torch.bfloat16)]
)
def test_gelu_within_its_bound(bound, dtype):
    assert_gelu_within(bound, dtype)


@needs_extension
def test_gelu_of_broken_values():
    x = torch.tensor([float('nan'), float('inf'), float('-inf'), 0.0, -0.0]).view(1, 5, 1, 1)
    identity = torch.zeros(5, 1, 3, 3)
    identity[..., 1, 1] = 1
    for which in ('gelu_input', 'gelu_output'):
        out = ops.depthwise_conv2d(x, identity, backend='cpu', **{which: True}).flatten()
        assert out[0].isnan()
        assert out[1] == float('inf')
        assert out[2].abs() < 2e-7
        assert out[3] == out[4] == 0


@needs_extension
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_broken_values_stay_in_the_windows_that_hold_them(dtype, value):
    weight = normal(20, 1, 5, 5, dtype=dtype)
    for row in range(9):
        x = normal(1, 20, 9, 9, dtype=dtype)
        x[0, 3, row, 4] = value
        finite = ops.depthwise_conv2d(x, weight, backend='cpu').isfinite()
        window = finite[0, 3, max(0, row - 2) : row + 3, 2:7]
        assert not window.any()
        window.fill_(True)
        assert finite.all()


@needs_extension
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(op, options, dtype):
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            for shape in (Shape(1, 200, 30, 30, 3), Shape(2, 100, 6, 60, 7)):
                positional, keywords = arguments(shape, op, options, dtype)
                results.append(getattr(ops, op)(*positional, **keywords, backend='cpu'))
    finally:
        torch.set_num_threads(threads)
    for first, *others in (results[0::2], results[1::2]):
        for other in others:
            assert all(map(torch.equal, as_tuple(first), as_tuple(other)))


RUN_TABLE = """
import torch
from tests.ops.depthwise_helpers import OPTIONS, SHAPES, assert_right
from tests.ops.test_depthwise import HALVES, assert_gelu_within, assert_rounded
print(torch.backends.cpu.get_cpu_capability())
for shape in SHAPES:
    for op, options in OPTIONS:
        assert_right(shape, op, options, 'cpu')
assert_right(SHAPES[2], *OPTIONS[3], 'cpu', dtype=torch.float64)
for dtype in HALVES:
    assert_rounded(dtype, flushed=False)
    for op, options in OPTIONS:
        assert_right(SHAPES[2], op, options, 'cpu', dtype=dtype)
assert_gelu_within(2e-7, torch.float32)
assert_gelu_within(4e-6, torch.bfloat16)
"""


@needs_extension
@pytest.mark.parametrize('capability', ['default', 'avx2'])
@pytest.mark.slow
def test_kernels_of_other_instruction_sets(capability):
    """This process runs the widest kernels that the machine has; others run the rest."""
    helpers.run_with_kernels(RUN_TABLE, capability)


RUN_BFLOAT16 = """
import torch
from tests.ops.depthwise_helpers import OPTIONS, SHAPES, assert_right
from tests.ops.test_depthwise import assert_rounded
print(torch.backends.cpu.get_cpu_capability())
assert_rounded(torch.bfloat16, flushed=False)
for shape in SHAPES:
    for op, options in OPTIONS:
        assert_right(shape, op, options, 'cpu', dtype=torch.bfloat16)
"""


@needs_extension
@helpers.needs_avx512
@pytest.mark.slow
def test_bfloat16_without_products_of_pairs():
    """The kernels of AVX-512, where this process may run those of AVX512_BF16."""
    helpers.run_with_kernels(RUN_BFLOAT16, 'avx512')


@needs_extension
@pytest.mark.skipif(
    not helpers.multiplies_pairs(), reason='No AVX512_BF16, or another instruction set is forced.'
)
def test_pairs_are_multiplied_where_the_processor_can():
    """Their products take subnormal numbers for zero, which the other kernels do not."""
    x = torch.full((1, 16, 5, 5), 2.0**-130, dtype=torch.bfloat16)
    weight = torch.ones(16, 1, 3, 3, dtype=torch.bfloat16)
    assert (ops.depthwise_conv2d(x, weight, backend='cpu') == 0).all()
    assert (ops.depthwise_conv2d(x.float(), weight.float(), backend='cpu') > 0).all()


def operator_call(op, options, backend, dtype=torch.float32):
    """The registered operator and its arguments, leaves that ask for gradients."""
    positional, options = arguments(Shape(2, 6, 5, 4, 3), op, options, dtype=dtype)
    leaves = [x.requires_grad_() if isinstance(x, torch.Tensor) else x for x in positional]
    rest = [*{**DEFAULTS[op], **options}.values(), backend]
    rest = [x.requires_grad_() if isinstance(x, torch.Tensor) else x for x in rest]
    return getattr(torch.ops.overlock_mm, op).default, [*leaves, *rest]


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize(('op', 'options'), OPTIONS[2::2], ids=str)
def test_opcheck(op, options, backend):
    torch.library.opcheck(*operator_call(op, options, backend))


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_first_and_second_derivatives(op, options, backend):
    operator, values = operator_call(op, options, backend, torch.float64)
    where = [i for i, x in enumerate(values) if isinstance(x, torch.Tensor)]

    def function(*tensors):
        replaced = list(values)
        for i, tensor in zip(where, tensors, strict=True):
            replaced[i] = tensor
        return operator(*replaced)

    tensors = [values[i] for i in where]
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('shape', 'dilation'), DILATED, ids=str)
def test_gradients_of_the_convolution(shape, dilation, dtype, backend):
    if (backend, dilation > 1) == ('cpu', True):
        with pytest.raises(RuntimeError, match='its dilation must be 1, got'):
            assert_gradients(shape, dilation, backend)
        return
    assert_gradients(shape, dilation, backend, dtype=dtype)


def test_the_gradient_of_the_weight_has_no_derivative():
    x = normal(1, 4, 5, 5).requires_grad_()
    grad = torch.ops.overlock_mm.depthwise_conv2d_weight_grad(x, x, 3, 1, None)
    with pytest.raises(RuntimeError, match='has no derivative. Remedy: .* create_graph=True'):
        grad.sum().backward()


def test_opcheck_of_the_gradient_of_the_weight():
    operator = torch.ops.overlock_mm.depthwise_conv2d_weight_grad.default
    torch.library.opcheck(operator, (normal(2, 4, 5, 6), normal(2, 4, 5, 6), 3, 2, None))
    empty = normal(0, 4, 5, 6)
    assert not operator(empty, empty, 3, 1, None).any()


def test_a_compiled_training_step():
    """Forward and backward are one graph each, with one operator per convolution and gradient."""
    leaves = [normal(2, 6, 9, 8).requires_grad_(), normal(6, 1, 5, 5).requires_grad_()]

    def step(x, weight):
        return ops.depthwise_conv2d(x, weight, dilation=2).square().sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend='aot_eager')
    got = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(map(torch.equal, got, torch.autograd.grad(step(*leaves), leaves)))


def test_an_argument_computed_from_another():
    """Each argument gets the gradient of its own place only."""
    x, weight = (
        normal(*sizes, dtype=torch.float64).requires_grad_()
        for sizes in ((1, 4, 5, 5), (4, 1, 3, 3))
    )
    (got,) = torch.autograd.grad(ops.depthwise_conv2d(x, weight, addend=2 * x).sum(), x)
    (wanted,) = torch.autograd.grad((F.conv2d(x, weight, padding=1, groups=4) + 2 * x).sum(), x)
    assert_close(got, wanted)


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_compiled_into_one_graph(op, options, backend):
    positional, options = arguments(SHAPES[1], op, options, layout='contiguous')

    def function(*values):
        return getattr(ops, op)(*values, **options, backend=backend)

    torch.compiler.reset()  # each case counts as a recompilation of one function
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    for result, wanted in zip(
        as_tuple(compiled(*positional)), as_tuple(function(*positional)), strict=True
    ):
        assert result.stride() == wanted.stride()
        assert torch.equal(result, wanted)


@pytest.mark.parametrize(('op', 'options'), OPTIONS, ids=str)
def test_autocast_lowers_the_activations(op, options):
    positional, options = arguments(SHAPES[1], op, options)
    lowered = [positional[0].bfloat16(), *positional[1:]]
    low_options = {k: v.bfloat16() if k == 'addend' else v for k, v in options.items()}
    expected = as_tuple(getattr(ops, op)(*lowered, **low_options))
    with torch.autocast('cpu', torch.bfloat16):
        results = as_tuple(getattr(ops, op)(*positional, **options))
    assert all(map(torch.equal, results, expected))


def test_a_dispatch_mode_sees_the_operator():
    """The dispatcher is bypassed only where nothing intercepts the call."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x, weight = normal(1, 4, 5, 5), normal(4, 1, 3, 3)
    with Watch():
        ops.depthwise_conv2d(x, weight)
    assert seen[0] == 'overlock_mm.depthwise_conv2d.default'
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert ops.depthwise_conv2d_stats(torch.empty(1, 4, 5, 5), weight)[1].shape == (1, 4)


def test_channels_innermost_survives_loading():
    weight = normal(6, 1, 3, 3)
    innermost = ops.channels_innermost(weight)
    assert torch.equal(innermost, weight)
    assert innermost.stride(0) == 1
    conv = torch.nn.Conv2d(6, 6, 3, groups=6, bias=False)
    conv.weight = torch.nn.Parameter(ops.channels_innermost(conv.weight.detach()))
    conv.load_state_dict({'weight': weight})
    assert conv.weight.stride(0) == 1


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(x=normal(4, 5, 5)), ValueError, r'x must be \[B, C, H, W\].*\[4, 5, 5\]'),
        (dict(x=normal(1, 4, 0, 5)), ValueError, r'at least one channel, row and column'),
        (dict(x=torch.ones(1, 4, 5, 5).int()), TypeError, 'x must be a floating point tensor'),
        (dict(weight=normal(4, 1, 4, 4)), ValueError, 'odd number between 3 and 17, got 4 x 4'),
        (dict(weight=normal(4, 1, 19, 19)), ValueError, 'between 3 and 17, got 19 x 19'),
        (dict(weight=normal(4, 1, 3, 5)), ValueError, 'got 3 x 5'),
        (dict(weight=normal(4, 4, 3, 3)), ValueError, r'C = 4 as in x, got \[4, 4, 3, 3\]'),
        (dict(bias=normal(5)), ValueError, r'bias must be \[C\] = \[4\], got \[5\]'),
        (dict(bias=normal(4).double()), TypeError, 'bias torch.float64'),
        (dict(addend=normal(1, 4, 5, 1)), ValueError, 'addend must have the shape of x'),
        (dict(addend=normal(1, 4, 5, 5).double()), TypeError, 'addend must have the dtype of x'),
        (dict(addend=normal(1, 4, 5, 5).to('meta')), ValueError, 'addend on meta'),
        (dict(dilation=0), ValueError, 'dilation must be a positive integer, got 0'),
        (dict(dilation=1.0), ValueError, 'dilation must be a positive integer, got 1.0'),
        (dict(backend='gpu'), ValueError, "one of: cpu, triton, cuda, reference; got 'gpu'"),
        (dict(stat='max'), ValueError, "one of: mean, norm; got 'max'"),
    ],
)
def test_wrong_arguments(change, error, message):
    right = dict(x=normal(1, 4, 5, 5), weight=normal(4, 1, 3, 3), bias=normal(4))
    operator = ops.depthwise_conv2d if 'dilation' in change else ops.depthwise_conv2d_stats
    with pytest.raises(error, match=message):
        operator(**{**right, **change})


def test_wrong_arguments_of_the_norm():
    x, weight, ones = normal(1, 4, 5, 5), normal(4, 1, 3, 3), torch.ones(4)
    with pytest.raises(ValueError, match='norm_weight must be'):
        ops.depthwise_conv2d_norm(x, weight, None, torch.ones(3), ones, EPS)
    with pytest.raises(ValueError, match='skip_bias needs skip_weight'):
        ops.depthwise_conv2d_norm(x, weight, None, ones, ones, EPS, skip_bias=ones)
    with pytest.raises(ValueError, match='eps must be positive, got 0'):
        ops.depthwise_conv2d_norm(x, weight, None, ones, ones, 0)


@pytest.fixture
def no_extension(monkeypatch):
    reason = 'the compiled extension overlock_mm._C is not installed. Remedy: build it.'
    monkeypatch.setattr(extension, 'why_not_loaded', lambda: reason)
    monkeypatch.setattr(selection, '_logged', set())


def test_without_the_extension_the_library_runs_it(no_extension, caplog):
    caplog.set_level(logging.INFO, 'overlock_mm')
    for _ in range(2):
        ops.depthwise_conv2d(normal(1, 4, 5, 5), normal(4, 1, 3, 3))
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == "depthwise_conv2d on cpu runs on backend 'reference'."


def test_a_forced_backend_says_why_it_cannot(no_extension):
    with pytest.raises(RuntimeError, match=r'\(1\) the compiled extension .*_C is not installed'):
        ops.depthwise_conv2d(normal(1, 4, 5, 5), normal(4, 1, 3, 3), backend='cpu')


@needs_extension
def test_selection():
    call = Call('depthwise_conv2d', torch.device('cpu'), torch.float32)
    assert list(available_backends(call)) == list(BACKENDS)
    assert available_backends(call)['cpu'] == []
    half = Call('depthwise_conv2d', torch.device('cpu'), torch.float16)
    assert BACKENDS.select(half).name == 'cpu'
    on_gpu = Call('depthwise_conv2d', torch.device('cuda'), torch.float64)
    assert BACKENDS.select(on_gpu).name == 'reference'  # nothing else computes float64 there
