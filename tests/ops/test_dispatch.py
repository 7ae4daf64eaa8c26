"""Nothing is lost on the short way to a backend: transforms, forward mode, modes and tracers."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from overlock_mm import ContMixBlock, ops
from overlock_mm.ops.contmix import reference as contmix_reference
from overlock_mm.ops.depthwise import reference as depthwise_reference
from overlock_mm.ops.dispatch import bypasses_dispatcher, is_intercepted
from tests.ops import helpers
from tests.ops.depthwise_helpers import DEFAULTS, OPTIONS, arguments
from tests.ops.helpers import Shape
from tests.ops.test_cpu_backends import BACKENDS
from tests.tolerances import assert_close

SMALL = Shape(2, 2, 3, 2, 6, 5, 3, 4)


def contmix_case():
    tensors = [x.detach() for x in helpers.contmix_arguments(SMALL, torch.float64)]

    def ours(value, backend=None):
        return ops.contmix(*tensors[:2], value, *tensors[3:], 3, scale=0.5, backend=backend)

    def definition(value):
        return contmix_reference.contmix(*tensors[:2], value, *tensors[3:], 3, 0.5)

    return ours, definition, tensors[2]


def aggregate_case():
    weight, value = (x.detach() for x in helpers.aggregate_arguments(SMALL, torch.float64))

    def ours(value, backend=None):
        return ops.neighborhood_aggregate(weight, value, 3, backend=backend)

    return ours, lambda v: contmix_reference.neighborhood_aggregate(weight, v, 3), value


def depthwise_case(op, options):
    (x, *others), options = arguments((2, 6, 5, 4, 3), op, options, dtype=torch.float64)
    everything = {**DEFAULTS[op], **options}

    def first(results):
        return results[-1] if isinstance(results, tuple) else results

    def ours(x, backend=None):
        return first(getattr(ops, op)(x, *others, **options, backend=backend))

    return ours, lambda x: first(getattr(depthwise_reference, op)(x, *others, **everything)), x


CASES = {
    'contmix': contmix_case,
    'neighborhood_aggregate': aggregate_case,
    **{op: lambda op=op, options=options: depthwise_case(op, options) for op, options in OPTIONS},
}


@pytest.fixture(params=CASES)
def case(request):
    """A function of one tensor and perhaps a backend, its definition, and the tensor."""
    return CASES[request.param]()


def direction(x):
    return torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)


def test_forward_mode_by_torch_func(case):
    ours, definition, x = case
    wanted = jvp(definition, (x,), (direction(x),))
    got = jvp(ours, (x,), (direction(x),))
    assert wanted[1].abs().max() > 0
    for result, expected in zip(got, wanted, strict=True):
        assert_close(result, expected)


def test_forward_mode_by_dual_tensors(case):
    ours, definition, x = case
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(ours(x)).tangent is None
        got, wanted = (
            forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction(x)))).tangent
            for f in (ours, definition)
        )
    assert_close(got, wanted)


@pytest.mark.parametrize('backend', ['cpu', 'cuda', 'triton'])
def test_a_forced_backend_says_that_it_has_no_forward_mode(case, backend):
    ours, _, x = case
    message = f"'{backend}' cannot run .* no forward-mode derivative"
    with pytest.raises(RuntimeError, match=message):
        jvp(lambda x: ours(x, backend), (x,), (direction(x),))
    with pytest.raises(RuntimeError, match=message):
        grad(lambda x: ours(x, backend).sum())(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction(x))
        with pytest.raises(RuntimeError, match=message):
            ours(dual, backend)


def test_the_reference_has_forward_mode_when_it_is_forced(case):
    ours, definition, x = case
    got = jvp(lambda x: ours(x, 'reference'), (x,), (direction(x),))[1]
    assert_close(got, jvp(definition, (x,), (direction(x),))[1])


def test_no_way_to_the_operator_drops_a_tangent():
    weight, value = (x.detach() for x in helpers.aggregate_arguments(SMALL, torch.float64))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, direction(value))
        with pytest.raises(RuntimeError, match='no forward-mode derivative. Remedy: call'):
            torch.ops.overlock_mm.neighborhood_aggregate(weight, dual, 3, 1, None)


def test_gradients_by_torch_func(case):
    ours, definition, x = case
    got, wanted = (grad(lambda x, f=f: f(x).square().sum())(x) for f in (ours, definition))
    assert_close(got, wanted)


def test_second_derivatives_by_torch_func():
    ours, definition, x = aggregate_case()
    got, wanted = (
        hessian(lambda x, f=f: f(x).pow(3).sum())(x[:1, :1])
        for f in (
            lambda part: ours(torch.cat([torch.cat([part, x[:1, 1:]], 1), x[1:]])),
            lambda part: definition(torch.cat([torch.cat([part, x[:1, 1:]], 1), x[1:]])),
        )
    )
    assert_close(got, wanted)


@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_vmap(case):
    ours, _, x = case
    several = torch.stack([x, 2 * x, -x])
    assert_close(vmap(ours)(several), torch.stack([ours(x) for x in several]))
    got = vmap(grad(lambda x: ours(x).square().sum()))(several)
    assert_close(got, torch.stack([grad(lambda x: ours(x).square().sum())(x) for x in several]))


def test_a_block_under_transforms():
    torch.manual_seed(0)
    block = ContMixBlock(dim=16, kernel_size=5, smk_size=3, num_heads=1).double().eval()
    parameters = dict(block.named_parameters())
    image = torch.randn(1, 16, 6, 7, dtype=torch.float64)

    def loss(parameters):
        return functional_call(block, parameters, (image,)).square().sum()

    gradients = grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            assert_close(gradients[name], parameter.grad)
    tangents = {name: torch.ones_like(x) for name, x in parameters.items()}
    _, tangent = jvp(loss, ({n: x.detach() for n, x in parameters.items()},), (tangents,))
    wanted = sum(x.grad.sum() for x in parameters.values() if x.grad is not None)
    assert_close(tangent, wanted)


def test_the_deploy_form_under_transforms():
    torch.manual_seed(0)
    block = ContMixBlock(dim=16, kernel_size=5, smk_size=3, num_heads=1).eval()
    deploy = copy.deepcopy(block)
    deploy.switch_to_deploy()
    image = torch.randn(1, 16, 6, 7)
    direct = torch.randn(1, 16, 6, 7)
    wanted = jvp(block, (image,), (direct,))[1]
    torch.testing.assert_close(jvp(deploy, (image,), (direct,))[1], wanted, atol=1e-4, rtol=1e-3)
    got, wanted = (grad(lambda x, f=f: (f(x) * direct).sum())(image) for f in (deploy, block))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_a_tracer_finds_one_operator(case):
    ours, _, x = case
    traced = make_fx(lambda x: ours(x))(x)
    (node,) = (n for n in traced.graph.nodes if 'overlock_mm' in str(n.target))
    assert 'backward' not in str(node.target)
    assert_close(traced(x), ours(x))


def test_flops_are_counted(case):
    ours, _, x = case
    names = ('contmix', 'neighborhood_aggregate', *(op for op, _ in OPTIONS))
    counter = FlopCounterMode(
        display=False,
        custom_mapping={getattr(torch.ops.overlock_mm, name): lambda *_, **__: 7 for name in names},
    )
    with counter:
        ours(x)
    assert counter.get_total_flops() == 7


def test_a_mode_sees_the_operators_of_the_gradient():
    """Without one, backends are called directly, here too."""
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    weight = torch.randn(4, 1, 3, 3, requires_grad=True)
    mixed = helpers.contmix_arguments(SMALL, torch.float64)
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.overlock_mm.contmix_backward: lambda *_, **__: 1,
            torch.ops.overlock_mm.depthwise_conv2d: lambda *_, **__: 10,
            torch.ops.overlock_mm.depthwise_conv2d_weight_grad: lambda *_, **__: 100,
        },
    )
    out, mixture = ops.depthwise_conv2d(x, weight), ops.contmix(*mixed, 3)
    with counter:
        seen = torch.autograd.grad(out.sum() + mixture.sum(), (x, weight, *mixed))
    assert counter.get_total_flops() == 111
    out, mixture = ops.depthwise_conv2d(x, weight), ops.contmix(*mixed, 3)
    unseen = torch.autograd.grad(out.sum() + mixture.sum(), (x, weight, *mixed))
    assert all(map(torch.equal, seen, unseen))


def test_a_function_mode_sees_and_may_replace_the_call(case):
    ours, _, x = case
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        out = ours(x)
    modules = [getattr(function, '__module__', '') for function in seen]
    assert any(name.startswith('overlock_mm.ops') for name in modules)
    assert torch.equal(out, ours(x))

    class Replace(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is ops.contmix:
                return torch.full_like(args[2], 5)
            return function(*args, **(kwargs or {}))

    tensors = helpers.contmix_arguments(SMALL, torch.float64)
    with Replace():
        assert (ops.contmix(*tensors, 3) == 5).all()
    assert not (ops.contmix(*tensors, 3) == 5).any()


def test_tensors_of_another_class():
    class Named(torch.Tensor):
        pass

    weight, value = (x.detach() for x in helpers.aggregate_arguments(SMALL, torch.float64))
    out = ops.neighborhood_aggregate(weight, value.as_subclass(Named), 3)
    assert type(out) is Named
    assert torch.equal(out.as_subclass(torch.Tensor), ops.neighborhood_aggregate(weight, value, 3))


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_short_way_and_the_operator_agree(case, backend):
    """Results and gradients, where nothing watches and where something does."""
    ours, _, x = case
    assert bypasses_dispatcher([x])
    tracked = x.clone().requires_grad_()
    assert not bypasses_dispatcher([tracked]) and not is_intercepted([tracked])
    direct = ours(tracked, backend)
    with FlopCounterMode(display=False):
        watched = ours(tracked, backend)
    assert 'Generated' not in direct.grad_fn.name() and 'Generated' in watched.grad_fn.name()
    assert torch.equal(ours(x, backend), direct.detach())
    assert torch.equal(direct, watched)
    assert torch.equal(
        *(torch.autograd.grad(out.square().sum(), tracked)[0] for out in (direct, watched))
    )


def test_a_tensor_that_has_changed_has_no_gradient(case):
    ours, _, x = case
    tracked = x.clone().requires_grad_()
    changed = tracked * 1
    out = ours(changed)
    changed.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()
