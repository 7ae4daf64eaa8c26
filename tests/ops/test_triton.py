"""The triton backend on a machine without a GPU: interpreted, and compiled but not run."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from overlock_mm.ops import triton_runtime
from overlock_mm.ops.contmix import cuda_backend, triton_backend
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS as CONTMIX
from overlock_mm.ops.contmix.backends import Call
from overlock_mm.ops.depthwise import triton_launch
from overlock_mm.ops.depthwise.backends import BACKENDS as DEPTHWISE
from tests.fake_card import FakeTensorMode, OnTheCard

ROOT = Path(__file__).resolve().parents[2]
MISSING = triton_runtime.why_not_installed()
needs_triton = pytest.mark.skipif(MISSING is not None, reason=f'Triton is not there: {MISSING}')
compiles = pytest.mark.skipif(
    os.environ.get('TRITON_INTERPRET') == '1',
    reason='TRITON_INTERPRET=1 is set, which leaves nothing to compile.',
)

#: Shared memory of one block on the smallest GPUs of compute capability 8.0 or higher.
SHARED_MEMORY = 99 * 1024
FLOAT32 = {
    *('proj_weight', 'proj_bias', 'rpb', 'logsumexp', 'delta'),
    *('d_folded', 'd_tap_bias', 'd_position_bias', 'sums'),
}
INTEGERS = {
    *('batches', 'groups', 'pairs', 'height', 'width', 'chunks', 'dilation'),
    *('channels', 'pixels', 'has_bias', 'has_addend', 'statistic'),
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('file', ['triton_interpreted.py', 'triton_interpreted_depthwise.py'])
def test_kernels_in_the_interpreter(file):
    # Triton decides when it is imported, and other tests of this process may want it compiled.
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '--durations=3', f'tests/ops/{file}'],
        cwd=ROOT,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def argument_type(name, dtype, dims):
    if name.endswith('_strides'):
        return ('i64', 'i64', *('i32',) * (dims.get(name, dims['any']) - 2))
    if name in ('scale', 'eps'):
        return 'fp32'
    if name in INTEGERS:
        return 'i32'
    return '*fp32' if name in FLOAT32 else f'*{dtype}'


@needs_triton
@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ('capability', 'dtype', 'kernel_size', 'channels'),
    # The network's large window, and the largest shared memory that any call can ask for.
    [(80, torch.bfloat16, 13, 16), (80, torch.float32, 17, 32), (90, torch.bfloat16, 13, 16)],
)
def test_kernels_compile(tmp_path, monkeypatch, capability, dtype, kernel_size, channels):
    from overlock_mm.ops.contmix import (
        triton_aggregate_kernels,
        triton_grad_kernels,
        triton_kernels,
    )

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    value = torch.empty(1, 1, channels, 1, 1, dtype=dtype)
    arguments = ContMixArguments(value, None, value, None, None, None, kernel_size, 1.0)
    sizes = triton_backend._contmix_sizes(arguments)
    options = {name: sizes.pop(name) for name in ('num_warps', 'num_stages')}
    sizes |= triton_backend._gradient_sizes(arguments)
    sizes |= {'REGIONS': 49, 'SP': 64}
    aggregation = {**sizes, 'SLICE': triton_backend.SLICE, 'TOKENS': 64}
    kernels = [
        (kernel, sizes, options)
        for module in (triton_kernels, triton_grad_kernels)
        for kernel in kernels_of(module)
    ]
    kernels += [(kernel, aggregation, {}) for kernel in kernels_of(triton_aggregate_kernels)]
    assert len(kernels) == 8
    for kernel, sizes, options in kernels:
        constants = {name: size for name, size in sizes.items() if name in kernel.arg_names}
        dims = {'any': 5, 'key_strides': 4}
        assert_compiles(kernel, constants, capability, dtype, dims, options)


def kernels_of(module):
    return [getattr(module, name) for name in dir(module) if name.endswith('_kernel')]


def assert_compiles(kernel, constants, capability, dtype, dims, options=None):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        argument: 'constexpr'
        if argument in constants
        else argument_type(argument, 'fp32' if dtype == torch.float32 else 'bf16', dims)
        for argument in kernel.arg_names
    }
    positions = {(kernel.arg_names.index(key),): size for key, size in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    assert compiled.asm['cubin'], kernel.__name__
    assert compiled.metadata.shared <= SHARED_MEMORY, kernel.__name__


@needs_triton
@compiles
@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('everything', [False, True])
def test_depthwise_kernels_compile(tmp_path, monkeypatch, capability, everything):
    """With all that is optional, and with none of it."""
    from overlock_mm.ops.depthwise import triton_kernels

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    optional = ('input_bias', 'skip_weight', 'skip_bias')
    absent = dict.fromkeys(() if everything else optional)
    tile = {'K': 13, 'ROWS': 8, 'COLUMNS': 8, 'SLICE': 64, 'WIDE': everything}
    flags = dict.fromkeys(('GELU_INPUT', 'GELU_OUTPUT'), everything)
    for kernel, constants in (
        (triton_kernels.depthwise_kernel, tile | flags | ({'K': 3} if everything else {})),
        (triton_kernels.norm_kernel, {'PIXELS': 4, 'SLICE': 512}),
        (triton_kernels.weight_grad_kernel, tile | {'TAPS': 7, 'GROUPS': 4, 'COLUMNS': 4}),
    ):
        constants = {
            name: value for name, value in (absent | constants).items() if name in kernel.arg_names
        }
        assert_compiles(kernel, constants, capability, torch.bfloat16, {'any': 3})


@needs_triton
@compiles
@pytest.mark.slow
def test_depthwise_kernels_load_16_bytes_and_spill_nothing(tmp_path, monkeypatch):
    """As they are launched: the speed of the kernels rests on it."""
    from benchmarks.gpu_code.triton_launches import launches

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    functions = DEPTHWISE['triton'].functions
    x = torch.empty(2, 112, 14, 14, dtype=torch.bfloat16, device='meta')
    x = x.to(memory_format=torch.channels_last)
    weight = torch.empty(112, 1, 17, 17, dtype=torch.bfloat16, device='meta')

    def call():
        functions['depthwise_conv2d'](x, weight, None, None, None, False, False, 1)
        functions['depthwise_conv2d_weight_grad'](x, x, 17, 1)

    found = launches(90, call)
    assert len(found) == 2
    for launch in found:
        assert {i.load_bits for i in launch.code.instructions if i.load_bits} == {128}
        assert launch.code.stack == 0


@needs_triton
@compiles
def test_nothing_beside_the_kernels_waits_for_the_card(monkeypatch):
    """So that CUDA graphs can capture all calls."""
    from triton.runtime.jit import JITFunction

    launched = []
    monkeypatch.setattr(JITFunction, 'run', lambda self, *_, **__: launched.append(self.__name__))
    monkeypatch.setattr(torch.cuda, 'device_of', lambda x: contextlib.nullcontext())
    monkeypatch.setattr(triton_launch, 'multiprocessors', lambda device: 100)
    with FakeTensorMode(), OnTheCard():
        contmix, depthwise = CONTMIX['triton'].functions, DEPTHWISE['triton'].functions

        def new(*sizes):
            return torch.empty(sizes, device='cuda', dtype=torch.bfloat16)

        query, key, value = new(2, 4, 16, 14, 14), new(2, 4, 16, 49), new(2, 4, 16, 14, 14)
        parameters = new(169, 49), new(169), new(4, 25, 25)
        arguments = ContMixArguments(query, key, value, *parameters, 13, 0.25)
        out, logsumexp = contmix['contmix_forward'](arguments)
        contmix['contmix_backward'](out, arguments, out, logsumexp)
        weight, tokens = new(2, 4, 14, 14, 49), new(2, 4, 14, 14, 16)
        contmix['neighborhood_aggregate_forward'](weight, tokens, 7, 1)
        contmix['neighborhood_aggregate_backward'](tokens, weight, tokens, 7, 1)
        x, weight, bias = new(2, 64, 14, 14), new(64, 1, 7, 7), new(64)
        depthwise['depthwise_conv2d'](x, weight, bias, bias, x, True, True, 2)
        depthwise['depthwise_conv2d_weight_grad'](x, x, 7, 1)
        depthwise['depthwise_conv2d_norm'](x, weight, bias, bias, bias, 1e-6, bias, bias)
        for stat in ('mean', 'norm'):
            depthwise['depthwise_conv2d_stats'](x, weight, bias, bias, x, True, stat)
    assert launched == [
        *('fold_kernel', 'forward_kernel', 'fold_kernel'),
        *('query_grad_kernel', 'value_grad_kernel', 'parameter_grad_kernel'),
        *('forward_kernel', 'weight_grad_kernel', 'value_grad_kernel'),
        *('depthwise_kernel', 'weight_grad_kernel', 'depthwise_kernel', 'norm_kernel'),
        *('depthwise_kernel', 'depthwise_kernel'),
    ]


@pytest.mark.parametrize('backend', [cuda_backend, triton_backend])
def test_refuses_with_all_reasons(backend):
    call = Call(
        'contmix',
        torch.device('cpu'),
        torch.float64,
        kernel_size=13,
        channels=40,
        query_channels=33,
        regions=81,
    )
    reasons = backend.why_not(call)
    assert not any('S must' in reason for reason in reasons)
    for wanted in (
        'dtype must be float16, bfloat16 or float32, got torch.float64.',
        'C must be at most 32, got 40.',
        'Cq must be at most 32, got 33.',
    ):
        assert wanted in reasons
    # The CUDA kernels take any number of regions.


@pytest.mark.parametrize('backend', [cuda_backend, triton_backend])
def test_aggregation_takes_any_number_of_channels(backend):
    few, many = (
        backend.why_not(
            Call('neighborhood_aggregate', torch.device('cpu'), torch.float32, 7, channels=channels)
        )
        for channels in (16, 256)
    )
    assert few == many
