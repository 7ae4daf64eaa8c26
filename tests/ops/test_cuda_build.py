"""The CUDA sources compile, link, load and register where nvcc is found, GPU or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

CSRC = Path(__file__).resolve().parents[2] / 'overlock_mm' / 'ops' / 'csrc'

#: Runs in a process of its own, because a library of operators loads once in a process.
BUILD = """
import sys
from pathlib import Path
import torch
from torch.utils import cpp_extension

csrc, folder = map(Path, sys.argv[1:])
# Some toolkits come without the cuBLAS headers; torch's own dependencies bring them.
nvidia = Path(torch.__file__).parents[1] / 'nvidia'
includes = [str(path.parent) for path in nvidia.glob('*/include/cublas_v2.h')]
cpp_extension.load(
    'overlock_mm_cuda',
    [str(csrc / 'pytorch' / 'extension.cpp'), *map(str, csrc.glob('pytorch/cuda/*.cu'))],
    extra_include_paths=includes,
    build_directory=str(folder),
    with_cuda=True,
    is_python_module=False,
)
for name in (
    'contmix_forward',
    'contmix_backward',
    'neighborhood_aggregate_forward',
    'neighborhood_aggregate_backward',
):
    name = f'overlock_mm_C::{name}'
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CUDA'), name
"""


def why_not():
    if torch.version.cuda is None:
        return f'torch {torch.__version__} is not a CUDA build.'
    if cpp_extension.CUDA_HOME is None:
        return 'nvcc was not found; set CUDA_HOME to the folder of the CUDA toolkit.'
    if not Path(cpp_extension.CUDA_HOME, 'bin', 'nvcc').is_file():
        return f'CUDA_HOME is {cpp_extension.CUDA_HOME}, which has no bin/nvcc.'
    if not cpp_extension.is_ninja_available():
        return 'ninja was not found.'
    return None


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f'CUDA cannot be compiled here: {why_not()}')
def test_sources_compile_link_and_register():
    # Kept between runs: ninja compiles only what has changed.
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    folder = cache / 'overlock_mm' / 'cuda_build' / f'torch-{torch.__version__}'
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        [sys.executable, '-c', BUILD, CSRC, folder],
        env={'MAX_JOBS': '1', **os.environ, 'TORCH_CUDA_ARCH_LIST': '8.0;9.0'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
