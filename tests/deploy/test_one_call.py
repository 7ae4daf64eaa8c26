"""Blocks in one call: the same as operator by operator, and only where nothing else is asked."""

import resource
import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from overlock_mm import OverLoCK
from overlock_mm.deploy import one_call
from overlock_mm.deploy.folding import FusedBlock
from overlock_mm.deploy.layers import constant
from overlock_mm.layers.basic_block import BasicBlock
from overlock_mm.ops import extension, use_backend
from tests.conftest import ROOT
from tests.models.helpers import TINY, randomize_parameters
from tests.ops.helpers import needs_avx512, run_with_kernels

pytestmark = pytest.mark.skipif(
    extension.why_not_loaded() is not None,
    reason=f'Blocks in one call need the extension: {extension.why_not_loaded()}',
)
BLOCKS = ('fused_block', 'fused_dynamic_block')
#: Maps smaller and larger than the windows, one sample and several.
SIZES = ((1, 3, 32, 64), (2, 3, 96, 64), (1, 3, 224, 224), (2, 3, 160, 224))


@pytest.fixture
def calls(monkeypatch):
    """Names of the blocks that were computed in one call."""
    made = []

    def watched(name):
        function = getattr(one_call, name)

        def call(*args):
            made.append(name)
            return function(*args)

        return call

    for name in BLOCKS:
        monkeypatch.setattr(one_call, name, watched(name))
    return made


def fused(dtype=torch.float32, **options):
    network = randomize_parameters(OverLoCK(TINY, **options)).eval()
    network.switch_to_deploy()
    return network.to(dtype)


#: Run in a process of its own, as the instruction set is chosen once.
RUN_BLOCKS = """
import torch
from overlock_mm.deploy import one_call
from tests.deploy.test_one_call import assert_close, fused

print(torch.backends.cpu.get_cpu_capability())
operands_of = one_call.operands_of
for dtype in one_call.DTYPES[1:]:
    network, image = fused(dtype), torch.randn(1, 3, 96, 224, dtype=dtype)
    with torch.inference_mode():
        outputs = network(image)
        one_call.operands_of = lambda *_: None
        assert_close(outputs, network(image))
        one_call.operands_of = operands_of
"""


def assert_close(outputs, expected):
    for out, reference in zip(outputs, expected, strict=True):
        assert out.stride() == reference.stride()
        # A factor may go into the map instead of the matrix.
        bound = 32 * torch.finfo(out.dtype).eps * reference.abs().max()
        assert (out - reference).abs().max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize(
    'capability', ['default', 'avx2', pytest.param('avx512', marks=needs_avx512)]
)
def test_kernels_of_other_instruction_sets(capability):
    run_with_kernels(RUN_BLOCKS, capability)


@pytest.mark.parametrize('dtype', one_call.DTYPES[1:])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_the_same_as_operator_by_operator(size, dtype, calls, monkeypatch):
    network, image = fused(dtype), torch.randn(size, dtype=dtype)
    with torch.inference_mode():
        outputs = network(image)
        assert set(calls) == set(BLOCKS)
        number = len(calls)
        monkeypatch.setattr(one_call, 'operands_of', lambda *_: None)
        expected = network(image)
    assert len(calls) == number
    assert_close(outputs, expected)


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    'context',
    [
        lambda: torch.autocast('cpu', torch.bfloat16),
        lambda: use_backend(depthwise='reference'),
        Watch,
    ],
    ids=['autocast', 'a chosen backend', 'a mode'],
)
def test_operator_by_operator_where_something_must_see_them(context, calls):
    network, image = fused(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), context():
        network(image)
    assert not calls


@pytest.mark.parametrize('asks', ['the image', 'a parameter'])
def test_gradients(asks, calls):
    network, image = fused(), torch.randn(1, 3, 64, 64)
    if asks == 'the image':
        image.requires_grad_()
    else:
        network.requires_grad_()
    network(image)
    assert not calls


def test_a_hook_on_a_part_is_called(calls):
    network, seen = fused(), []
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
        number = len(calls)
        block = next(m for m in network.modules() if type(m).__name__ == 'FusedBlock')
        block.mlp.register_forward_hook(lambda *_: seen.append('mlp'))
        network(torch.randn(1, 3, 64, 64))
    assert seen == ['mlp']
    assert len(calls) == 2 * number - 1


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def replace_parameter(block):
    block.mlp.reduce.weight = constant(-block.mlp.reduce.weight)


def replace_part(block):
    block.mlp.dwconv = deepcopy(block.mlp.dwconv)
    block.mlp.dwconv.weight.data.mul_(2)


def compute_parameter(block):
    parametrize.register_parametrization(block.mlp.reduce, 'weight', Doubled())


@pytest.mark.parametrize(
    ('change', 'in_one_call'),
    [(replace_parameter, True), (replace_part, True), (compute_parameter, False)],
)
def test_what_is_replaced_is_seen(change, in_one_call, calls, monkeypatch):
    block = next(m for m in fused().modules() if isinstance(m, FusedBlock))
    x = torch.randn(1, len(block.skip_norm.bias), 20, 20)
    with torch.no_grad():
        before = block(x)
        change(block)
        out = block(x)
        assert len(calls) == 1 + in_one_call
        monkeypatch.setattr(one_call, 'operands_of', lambda *_: None)
        torch.testing.assert_close(out, block(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, before, rtol=1e-2)


def test_a_backend_that_the_network_asks_for(calls):
    network = fused(contmix_backend='reference')
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
    assert set(calls) == {'fused_block'}


def operators(graph_module):
    return {str(node.target) for node in graph_module.graph.nodes if node.op == 'call_function'}


@pytest.mark.parametrize('gradients', [False, True])
def test_a_compiled_graph_holds_the_blocks(gradients):
    targets = set()

    def backend(graph_module, inputs):
        targets.update(operators(graph_module))
        return graph_module

    network, image = fused(), torch.randn(1, 3, 64, 96)
    image.requires_grad_(gradients)
    torch.compiler.reset()
    with nullcontext() if gradients else torch.no_grad():
        outputs = torch.compile(network, fullgraph=True, backend=backend)(image)
        for out, reference in zip(outputs, network(image), strict=True):
            torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-4)
    held = {name for name in BLOCKS if any(name in target for target in targets)}
    # torch 2.6 cannot tell whether a graph is exported, so none has them there.
    expected = not gradients and hasattr(torch.compiler, 'is_exporting')
    assert held == (set(BLOCKS) if expected else set())


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='torch 2.6 cannot tell')
@pytest.mark.parametrize('strict', [False, True])
def test_an_exported_graph_holds_public_operators_only(strict):
    with torch.no_grad():
        program = torch.export.export(fused(), (torch.randn(1, 3, 64, 96),), strict=strict)
    assert not any('overlock_mm_C' in target for target in operators(program.graph_module))


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_large_maps_take_memory_of_earlier_ones():
    """Of those that are no longer in use, and of their size."""
    norm_cfg = dict(type='BN')
    block = FusedBlock(randomize_parameters(BasicBlock(8, 7, 4, 0.0, False, norm_cfg)).eval())
    image = torch.randn(1, 8, 1100, 1100).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        first = block(image)
        expected = first.clone()
        block(image)
        before = page_faults()
        assert block(image).equal(expected)
        assert page_faults() - before < image.nbytes / resource.getpagesize()
        block(2 * image)
        assert first.equal(expected)


#: Memory in use after images of one size, and after images of further sizes, in bytes.
OF_SEVERAL_SIZES = """
import resource
from pathlib import Path
import torch
from overlock_mm.deploy.folding import FusedBlock
from overlock_mm.deploy.layers import constant
from overlock_mm.layers.basic_block import BasicBlock

block = FusedBlock(BasicBlock(8, 7, 4, 0.0, False, dict(type='BN')).eval())
with torch.inference_mode():
    for height in (1100, 1080, 1060, 1040):
        block(torch.randn(1, 8, height, 1100).contiguous(memory_format=torch.channels_last))
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        print(pages * resource.getpagesize())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='Other systems have no /proc/self/statm.')
def test_memory_of_other_sizes_is_freed():
    command = [sys.executable, '-c', OF_SEVERAL_SIZES]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, *_, last = map(int, result.stdout.split())
    assert last < first + 50e6
