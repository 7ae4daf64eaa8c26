"""``torch.compile`` makes one graph of the backbone for all sizes; CUDA graphs replay it."""

from copy import deepcopy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from overlock_mm import OverLoCK
from tests.models.helpers import randomize_parameters

ARCH = dict(channels=(16, 16, 64, 64), depths=(1, 1, 1, 1, 1, 1), groups=(2, 2))


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def backbone(form):
    model = randomize_parameters(OverLoCK(ARCH, context_residual=True)).eval()
    if form == 'fused':
        model.switch_to_deploy()
    return model


def assert_same(actual, expected):
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('form', ('training', 'fused'))
def test_one_graph_for_a_fixed_size(form):
    model, counter = backbone(form), CompileCounter()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_same(compiled(image), model(image))
    assert counter.frame_count == 1


@pytest.mark.skipif(
    torch.__version__.startswith('2.6'), reason='torch 2.6 makes two graphs of these sizes.'
)
@pytest.mark.slow
def test_one_graph_for_all_sizes():
    model, counter = backbone('fused'), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch, height, width in ((2, 224, 256), (3, 320, 225), (2, 200, 448)):
        image = torch.randn(batch, 3, height, width)
        for dim in (0, 2, 3):
            torch._dynamo.mark_dynamic(image, dim)
        with torch.no_grad():
            assert_same(compiled(image), model(image))
    assert counter.frame_count == 1


def test_gradients_through_one_graph():
    model, counter = backbone('training').train(), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    image = torch.randn(2, 3, 64, 64)
    gradients = []
    for call in (model, compiled):
        model.zero_grad()
        sum(x.square().mean() for x in call(image)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert counter.frame_count == 1
    assert_same(*reversed(gradients))


@pytest.mark.slow
def test_inductor():
    model = backbone('fused')
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same(compiled(image), model(image))


def on_a_gpu(test):
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA graphs need a GPU.')
    return pytest.mark.gpu(skip(test))


@on_a_gpu
@pytest.mark.parametrize('form', ('training', 'fused'))
def test_cuda_graphs(form):
    model = backbone(form).cuda()
    compiled = torch.compile(model, fullgraph=True, mode='reduce-overhead')
    for seed in range(4):  # the third call and later ones replay the graph
        torch.manual_seed(seed)
        image = torch.randn(2, 3, 224, 224, device='cuda')
        with torch.no_grad():
            assert_same([x.clone() for x in compiled(image)], model(image))


@on_a_gpu
def test_a_captured_call_is_replayed_on_another_image():
    model = backbone('fused').cuda()
    image = torch.randn(2, 3, 224, 224, device='cuda')
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(image)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            captured = model(image)
        image.normal_()
        graph.replay()
        assert_same(captured, model(image))


@on_a_gpu
def test_a_graphed_backbone_has_the_same_gradients():
    model = OverLoCK(ARCH, context_residual=True, recompute='none')
    model = randomize_parameters(model).cuda().train()
    eager = deepcopy(model)
    image = torch.randn(2, 3, 224, 224, device='cuda')
    results = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        graphed = torch.cuda.make_graphed_callables(model, (image,), allow_unused_input=True)
        image.normal_()
        for network in (graphed, eager):
            outputs = network(image)
            loss = sum(x.square().mean() for x in outputs)
            gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
            results.append([x.clone() for x in (*outputs, *gradients) if x is not None])
    assert_same(*results)
