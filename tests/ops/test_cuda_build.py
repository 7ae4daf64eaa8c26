"""The CUDA sources compile, link, load and register where nvcc is found, GPU or not."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / 'overlock_mm' / 'ops' / 'csrc'
OPERATORS = (
    'contmix_forward',
    'contmix_backward',
    'neighborhood_aggregate_forward',
    'neighborhood_aggregate_backward',
)
CHECK = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'overlock_mm_C::{name}', 'CUDA'), name
"""


def why_not():
    if torch.version.cuda is None:
        return f'torch {torch.__version__} is not a CUDA build.'
    if cpp_extension.CUDA_HOME is None:
        return 'nvcc was not found (CUDA_HOME).'
    if not Path(cpp_extension.CUDA_HOME, 'bin', 'nvcc').is_file():
        return f'There is no nvcc in CUDA_HOME, {cpp_extension.CUDA_HOME}.'
    return None


def build_folder():
    """One folder per state of the sources, so that only a change is compiled again."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(CSRC.rglob('*')):
        if path.is_file():
            digest.update(path.read_bytes())
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    return cache / 'overlock_mm' / 'cuda_build' / digest.hexdigest()[:16]


def include_folders():
    # Some toolkits come without the cuBLAS headers; torch's own dependencies bring them.
    nvidia = Path(torch.__file__).parents[1] / 'nvidia'
    folders = [path.parent for path in nvidia.glob('*/include/cublas_v2.h')]
    return [*cpp_extension.include_paths('cuda'), *map(str, folders)]


def compile_library(folder, library):
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = Path(cpp_extension.CUDA_HOME, 'bin', 'nvcc')
    includes = [f'-I{path}' for path in include_folders()]
    python = subprocess.run(
        [sys.executable, '-c', 'import sysconfig; print(sysconfig.get_path("include"))'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    sources = [
        *sorted((CSRC / 'pytorch' / 'cuda').glob('*.cu')),
        CSRC / 'pytorch' / 'extension.cpp',
    ]
    objects = []
    for source in sources:
        target = folder / f'{source.stem}.o'
        architectures = [
            f'-gencode=arch=compute_{number},code=sm_{number}' for number in ('80', '90')
        ]
        subprocess.run(
            [
                *(nvcc, '-c', source, '-o', target, '-std=c++17', '-Xcompiler', '-fPIC'),
                *(architectures if source.suffix == '.cu' else ()),
                *(includes + [f'-I{python}']),
            ],
            check=True,
        )
        objects.append(target)
    torch_lib = Path(torch.__file__).parent / 'lib'
    subprocess.run(
        [
            *(nvcc, '-shared', *objects, '-o', library, f'-L{torch_lib}'),
            *('-lc10', '-lc10_cuda', '-ltorch_cpu', '-ltorch_cuda', '-ltorch'),
            *('-Xlinker', f'-rpath={torch_lib}'),
        ],
        check=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f'CUDA cannot be compiled here: {why_not()}')
def test_sources_compile_link_and_register():
    folder = build_folder()
    library = folder / 'overlock_mm_cuda.so'
    if not library.is_file():
        compile_library(folder, library)
    # In a process of its own: a library of operators can be loaded once.
    subprocess.run([sys.executable, '-c', CHECK, library, *OPERATORS], check=True)
