"""The compiled extension; all else about the package is in pyproject.toml.

Environment variables:
    OVERLOCK_WITH_EXT: 0 leaves out the compiled extension overlock_mm._C, 1 insists on it.
        Without it a compilation that fails is reported, and the package is installed with what
        did compile: the CPU kernels, or no extension.
    FORCE_CUDA: 1 compiles CUDA kernels or fails, 0 never does. Without it they are
        compiled where torch is a CUDA build and finds an nvcc of its CUDA version (CUDA_HOME).
    TORCH_CUDA_ARCH_LIST: Architectures to compile for; without it, all from 8.0 up that both nvcc
        and torch know, with PTX of the newest for cards to come.
    MAX_JOBS: Compilers that run at a time.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent

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
    match = re.search(r'^#\$ _HERE_=(.+)$', dry_run.stderr, re.MULTILINE)
    if match:
        os.environ['CUDA_HOME'] = str(Path(match[1].strip()).parent)


def nvcc_says(*arguments: str) -> str:
    """What the nvcc of the toolkit prints; nothing if it does not run."""
    from torch.utils.cpp_extension import CUDA_HOME

    try:
        return subprocess.run(
            [str(Path(CUDA_HOME, 'bin', 'nvcc')), *arguments], capture_output=True, text=True
        ).stdout
    except OSError:
        return ''


def why_no_cuda() -> list[str]:
    """Every reason why CUDA kernels cannot be compiled here."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return [f'torch {torch.__version__} is not a CUDA build']
    if CUDA_HOME is None:
        return ['nvcc was not found; set CUDA_HOME to the folder of the CUDA toolkit']
    if not Path(CUDA_HOME, 'include', 'cuda_runtime.h').is_file():
        # For example, a folder that only holds a launcher for nvcc.
        return [f'CUDA_HOME={CUDA_HOME} has no include/cuda_runtime.h']
    release = re.search(r'release (\d+)\.(\d+)', nvcc_says('--version'))
    if release is None:
        return [f'{CUDA_HOME}/bin/nvcc does not run']
    # torch rejects another major version during the build.
    if release[1] != torch.version.cuda.split('.')[0]:
        return [
            f'nvcc is of CUDA {release[1]}.{release[2]} and torch of CUDA {torch.version.cuda}; '
            'set CUDA_HOME to a toolkit of the same major version'
        ]
    return []


def with_cuda() -> bool:
    """Whether to compile CUDA kernels.

    Raises:
        RuntimeError: FORCE_CUDA=1 asks for them, and they cannot be compiled.
    """
    forced = os.environ.get('FORCE_CUDA')
    reasons = why_no_cuda()
    if forced == '1' and reasons:
        raise RuntimeError(f'FORCE_CUDA=1, but {", and ".join(reasons)}.')
    if forced == '0':
        reasons.append('FORCE_CUDA=0')
    if reasons:
        print(f'overlock_mm is compiled without CUDA kernels: {", and ".join(reasons)}.')
    return not reasons


def cuda_architectures() -> str:
    """What nvcc and torch know from 8.0 up, the newest as PTX too, for TORCH_CUDA_ARCH_LIST."""
    import torch

    known = {int(number) for number in re.findall(r'compute_(\d+)', nvcc_says('--list-gpu-arch'))}
    # torch.cuda.get_arch_list() is empty on a machine without a GPU.
    flags = getattr(torch._C, '_cuda_getArchFlags', str)() or 'sm_80 sm_90'
    wanted = {int(number) for number in re.findall(r'sm_(\d+)', flags)}
    numbers = sorted(number for number in known & wanted if number >= 80)
    return ';'.join(f'{number // 10}.{number % 10}' for number in numbers) + '+PTX'


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


def extension(cuda: bool):
    """The extension ``overlock_mm._C``: CPU kernels always, CUDA kernels if requested."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # Multiply-adds may be fused also under -std=c++17, where GCC would not by itself.
    flags = ['-O3', '-ffp-contract=fast', '-Wno-unknown-pragmas']
    openmp = [] if sys.platform == 'darwin' else ['-fopenmp']
    sources = [*(ROOT / CSRC).glob('pytorch/*.cpp'), *(ROOT / CSRC).glob('pytorch/cpu/*.cpp')]
    compile_args = {'cxx': flags + openmp}
    if cuda:
        sources += [*(ROOT / CSRC).glob('pytorch/cuda/*.cu')]
        compile_args['nvcc'] = ['-O3']
        os.environ.setdefault('TORCH_CUDA_ARCH_LIST', cuda_architectures())
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


def build_command():
    """The ``build_ext`` of torch, which here stops no installation unless the user insists."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildWhatCompiles(BuildExtension):
        """Falls back from CUDA and CPU kernels to CPU kernels, and from these to no extension."""

        def run(self) -> None:
            inplace = self.inplace  # an attempt that fails leaves it changed
            cuda = any(name.endswith('.cu') for ext in self.extensions for name in ext.sources)
            try:
                super().run()
            # torch, ninja or a compiler may raise any exception, including SystemExit.
            except (Exception, SystemExit) as error:
                forced = os.environ.get('FORCE_CUDA') == '1' and cuda
                if forced or os.environ.get('OVERLOCK_WITH_EXT') == '1':
                    raise
                self.inplace = inplace
                reason = f'its compilation failed ({type(error).__name__}: {error})'
                if cuda:
                    print(f'overlock_mm is compiled without CUDA kernels: {reason}.')
                    vars(self.extensions[0]).update(vars(extension(cuda=False)))
                    self.run()
                else:
                    print(f'overlock_mm is installed without its compiled extension: {reason}.')
                    self.extensions.clear()

    return BuildWhatCompiles


def build_arguments() -> dict:
    """Arguments of `setup` that build the extension, if this machine can."""
    reason = why_no_extension()
    if reason is not None:
        if os.environ.get('OVERLOCK_WITH_EXT') == '1':
            raise RuntimeError(f'OVERLOCK_WITH_EXT=1, but {reason}.')
        print(f'overlock_mm is installed without its compiled extension: {reason}.')
        return {}
    find_cuda_toolkit()  # before torch looks for it
    return {
        'ext_modules': [extension(cuda=with_cuda())],
        'cmdclass': {'build_ext': build_command()},
    }


setup(**build_arguments())
