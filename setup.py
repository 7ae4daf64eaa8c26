"""Installation; the version lives in overlock_mm/version.py.

Environment variables:
    OVERLOCK_WITH_EXT: 0 leaves out the compiled extension overlock_mm._C.
    FORCE_CUDA: 1 compiles CUDA kernels or fails, 0 never does. Without it they are
        compiled where torch is a CUDA build and finds nvcc (CUDA_HOME).
    TORCH_CUDA_ARCH_LIST: Architectures to compile for; without it, and without a GPU at
        hand, 8.0 and 9.0.
    MAX_JOBS: Compilers that run at a time.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# mmcv, mmengine, mmdet, mmsegmentation and mmpretrain are no hard requirements, because each
# exists as two distributions (mmcv and onedl-mmcv, say) under one import name: naming one here
# would make pip install it over the other.
MAINTAINED_STACK = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmdetection>=3.5.1',
    'onedl-mmsegmentation>=1.4.2',
    'onedl-mmpretrain>=1.3.6',
    'faster-coco-eval>=1.8.0',
]


def read_version() -> str:
    """The version, without importing the package (torch may be missing yet)."""
    text = (ROOT / 'overlock_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


def read_description() -> str:
    """The README, if this copy has one."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


CSRC = Path('overlock_mm', 'ops', 'csrc')


def why_no_extension() -> str | None:
    """The reason to install without the compiled extension, or None."""
    if os.environ.get('OVERLOCK_WITH_EXT') == '0':
        return 'OVERLOCK_WITH_EXT=0'
    if sys.platform == 'win32':
        return 'its kernels are written with the vector types of GCC and Clang'
    if importlib.util.find_spec('torch') is None:
        return 'torch is not importable here; install it first and pass --no-build-isolation'
    compilers = [os.environ.get('CXX', 'c++').split()[0], 'g++', 'clang++']
    if not any(shutil.which(compiler) for compiler in compilers):
        return 'no C++ compiler was found'
    return None


def find_cuda_toolkit() -> None:
    """Set CUDA_HOME to the toolkit of the nvcc on PATH, unless the user has set it.

    torch takes the parent of nvcc's folder for the toolkit, which a launcher script deceives;
    nvcc itself knows where it is.
    """
    nvcc = shutil.which('nvcc')
    if nvcc is None or os.environ.get('CUDA_HOME'):
        return
    dry_run = subprocess.run(
        [nvcc, '--dryrun', '-x', 'cu', os.devnull], capture_output=True, text=True
    )
    found = re.search(r'^#\$ _HERE_=(.+)$', dry_run.stderr, re.MULTILINE)
    if found:
        os.environ['CUDA_HOME'] = str(Path(found[1].strip()).parent)


def with_cuda() -> bool:
    """Whether to compile CUDA kernels.

    Raises:
        RuntimeError: FORCE_CUDA=1 asks for them, and they cannot be compiled.
    """
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    wish = os.environ.get('FORCE_CUDA')
    reasons = []
    if torch.version.cuda is None:
        reasons.append(f'torch {torch.__version__} is not a CUDA build')
    if CUDA_HOME is None:
        reasons.append('nvcc was not found; set CUDA_HOME to the folder of the CUDA toolkit')
    elif not Path(CUDA_HOME, 'include', 'cuda_runtime.h').is_file():
        # Such as a folder that only holds a launcher for nvcc.
        reasons.append(f'CUDA_HOME={CUDA_HOME} has no include/cuda_runtime.h')
    if wish == '1' and reasons:
        raise RuntimeError(f'FORCE_CUDA=1, but {", and ".join(reasons)}.')
    if wish == '0':
        reasons.append('FORCE_CUDA=0')
    if reasons:
        print(f'overlock_mm is compiled without CUDA kernels: {", and ".join(reasons)}.')
    return not reasons


def cuda_include_dirs() -> list[str]:
    """CUDA headers of torch's own dependencies, where the toolkit came without cuBLAS."""
    from torch.utils.cpp_extension import CUDA_HOME

    if Path(CUDA_HOME, 'include', 'cublas_v2.h').is_file():
        return []
    spec = importlib.util.find_spec('nvidia')
    folders = [] if spec is None else spec.submodule_search_locations
    return [
        str(path.parent)
        for folder in folders
        for path in Path(folder).glob('*/include/cublas_v2.h')
    ]


def extension():
    """The extension ``overlock_mm._C``: CPU kernels always, CUDA kernels where possible."""
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # Multiply-adds may be fused also under -std=c++17, where GCC would not by itself.
    flags = ['-O3', '-ffp-contract=fast', '-Wno-unknown-pragmas']
    openmp = [] if sys.platform == 'darwin' else ['-fopenmp']
    sources = [*(ROOT / CSRC).glob('pytorch/*.cpp'), *(ROOT / CSRC).glob('pytorch/cpu/*.cpp')]
    compile_args = {'cxx': flags + openmp}
    if with_cuda():
        sources += [*(ROOT / CSRC).glob('pytorch/cuda/*.cu')]
        compile_args['nvcc'] = ['-O3']
        if not torch.cuda.is_available():
            os.environ.setdefault('TORCH_CUDA_ARCH_LIST', '8.0;9.0')
        kind, include_dirs = CUDAExtension, cuda_include_dirs()
    else:
        kind, include_dirs = CppExtension, []
    return kind(
        name='overlock_mm._C',
        sources=sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=include_dirs,
        extra_compile_args=compile_args,
        extra_link_args=openmp,
    )


def build_arguments() -> dict:
    """Arguments of `setup` that build the extension, if this machine can."""
    reason = why_no_extension()
    if reason is not None:
        print(f'overlock_mm is installed without its compiled extension: {reason}.')
        return {}
    find_cuda_toolkit()  # before torch looks for it
    from torch.utils.cpp_extension import BuildExtension

    return {'ext_modules': [extension()], 'cmdclass': {'build_ext': BuildExtension}}


setup(
    name='overlock_mm',
    version=read_version(),
    description='The OverLoCK backbone (CVPR 2025) for the OpenMMLab 2.x stack',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['overlock_mm', 'overlock_mm.*']),
    # The configs, where mmengine and mim look for them (links to configs/ in the sources), and
    # their bridges to mmengine's pure-Python style.
    package_data={
        'overlock_mm': [
            '.mim/model-index.yml',
            '.mim/configs/**/*.py',
            '.mim/configs/**/*.yml',
            'configs/*/*.py',
        ],
        # Templates of the page that explores dynamic kernels.
        'overlock_mm.analysis': ['explorer_page/*'],
        # mmcv's folder shape: the sources travel with the package.
        'overlock_mm.ops': ['csrc/**/*'],
    },
    python_requires='>=3.10',
    # No version of torch: pip would exchange it below an mmcv that was compiled for it. The
    # package itself says which it needs (overlock_mm/version.py).
    install_requires=['torch', 'numpy>=1.22', 'pillow>=9'],
    extras_require={'openmmlab': MAINTAINED_STACK},
    zip_safe=False,
    **build_arguments(),
)
