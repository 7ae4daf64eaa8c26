"""The path of the network on a GPU, as CUDA graphs need it, on a machine without one."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily

from overlock_mm import OverLoCK
from overlock_mm.layers import depthwise
from tests.fake_card import FakeTensorMode, OnTheCard

ARCH = dict(channels=(16, 16, 64, 64), depths=(1, 1, 1, 1, 1, 1), groups=(2, 2))
OURS = {
    'fused': {'contmix', *(f'depthwise_conv2d{end}' for end in ('', '_norm', '_stats'))},
    'training': {'contmix', 'depthwise_conv2d'},
}

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith('2.6'),
    reason='The convolution of torch 2.6 needs a real card, even for tensors without values.',
)


@pytest.fixture
def fake(monkeypatch):
    """The mode of tensors without values; the kernels are there."""
    monkeypatch.setattr(depthwise, '_has_kernels', lambda device: True)
    with FakeTensorMode() as mode:
        yield mode


def on_the_card(form):
    """A network in bfloat16 in channels_last memory, and images; under the mode."""

    with unset_fake_temporarily():
        network = OverLoCK(ARCH, context_residual=True).train(form == 'training')
        if form == 'fused':
            network.switch_to_deploy()
        network.to(memory_format=torch.channels_last)
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                if x is not None:
                    tensors[name] = without_values(x)
    images = torch.empty(2, 3, 224, 224, dtype=torch.bfloat16, device='cuda')
    return network, images.to(memory_format=torch.channels_last)


def without_values(x):
    dtype = torch.bfloat16 if x.is_floating_point() else x.dtype
    copy = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device='cuda')
    return nn.Parameter(copy, x.requires_grad) if isinstance(x, nn.Parameter) else copy


def test_what_is_refused(fake):
    x = torch.empty(2, 3, device='cuda')
    with pytest.raises(AssertionError, match='_to_copy.default on cpu'), OnTheCard():
        x.cpu()
    with pytest.raises(DataDependentOutputException), OnTheCard():
        x.sum().item()


def test_inference_stays_on_the_card(fake):
    network, images = on_the_card('fused')
    with torch.no_grad(), OnTheCard() as mode:
        network(images)
    assert mode.ours == OURS['fused']


def test_training_stays_on_the_card(fake):
    """The forward pass; autograd's engine wants a real card."""
    network, images = on_the_card('training')
    for module in network.modules():
        if hasattr(module, 'recompute'):
            module.recompute = 'none'  # the others keep the state of the random generator
    with OnTheCard() as mode:
        network(images)
    assert mode.ours == OURS['training']


def test_the_compiler_makes_one_graph(fake):
    torch.compiler.reset()
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph

    network, images = on_the_card('fused')
    compiled = torch.compile(network, fullgraph=True, backend=keep, dynamic=False)
    with torch.no_grad():
        compiled(images)
    (graph,) = graphs
    operators = [str(node.target) for node in graph.graph.nodes if node.op == 'call_function']
    ours = {name.removeprefix('overlock_mm.') for name in operators if 'overlock_mm' in name}
    assert {name.split('.')[0] for name in ours} == OURS['fused']
    torch.compiler.reset()
