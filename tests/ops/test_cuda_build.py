"""The CUDA kernels compile, link, load and register where nvcc is found, GPU or not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

#: Runs in a process of its own, because a library of operators loads once in a process.
LOAD = """
import sys
import torch

torch.ops.load_library(sys.argv[1])
for name in (
    'contmix_forward',
    'contmix_backward',
    'neighborhood_aggregate_forward',
    'neighborhood_aggregate_backward',
    'depthwise_conv2d',
    'depthwise_conv2d_norm',
    'depthwise_conv2d_stats',
):
    for key in ('CPU', 'CUDA'):
        name_in_c = f'overlock_mm_C::{name}'
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name_in_c, key), (name, key)
"""


def why_not():
    if torch.version.cuda is None:
        return f'torch {torch.__version__} is not a CUDA build.'
    if shutil.which('nvcc') is None and not os.environ.get('CUDA_HOME'):
        return 'nvcc was not found; put it on PATH or set CUDA_HOME to the CUDA toolkit.'
    home = os.environ.get('CUDA_HOME')
    nvcc = str(Path(home, 'bin', 'nvcc')) if home else shutil.which('nvcc')
    output = subprocess.run([nvcc, '--version'], capture_output=True, text=True, check=True).stdout
    (release,) = re.findall(r'release ([\d.]+)', output)
    if release != torch.version.cuda:
        return (
            f'nvcc is of CUDA {release}, torch of CUDA {torch.version.cuda}: another major version '
            'is an error of torch, and an nvcc of another minor version rejects the headers that '
            'torch installs.'
        )
    return None


def run(*command, **environ):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f'CUDA cannot be compiled here: {why_not()}')
def test_setup_compiles_links_and_registers():
    # Kept between runs: ninja compiles only what has changed.
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    folder = cache / 'overlock_mm' / 'cuda_build' / f'torch-{torch.__version__}'
    where = ['--build-temp', folder / 'temp', '--build-lib', folder / 'lib']
    run('setup.py', '-q', 'build_ext', *where, FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST='8.0')
    (library,) = (folder / 'lib').glob('overlock_mm/_C.*.so')
    run('-c', LOAD, library)
    cuobjdump = shutil.which('cuobjdump')
    if cuobjdump:
        listed = subprocess.run(
            [cuobjdump, '--list-elf', library], capture_output=True, text=True, check=True
        ).stdout
        assert 'sm_80' in listed
