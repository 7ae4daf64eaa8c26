"""The choices of setup.py: which extension is built, and what is said when none is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]


needs_cuda_torch = pytest.mark.skipif(
    torch.version.cuda is None, reason='This torch is a CPU build, which no toolkit fits.'
)


def toolkit(folder, release, architectures=(), compiles=True):
    """A CUDA toolkit whose nvcc knows its version and a list, and compiles nothing."""
    (folder / 'bin').mkdir()
    (folder / 'include').mkdir()
    (folder / 'include' / 'cuda_runtime.h').touch()
    (folder / 'include' / 'cublas_v2.h').touch()
    nvcc = folder / 'bin' / 'nvcc'
    listed = ' '.join(f'compute_{number}' for number in architectures)
    nvcc.write_text(
        '#!/bin/sh\ncase $1 in\n'
        f'--version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;\n'
        f'--list-gpu-arch) echo "{listed}" ;;\n*) exit 1 ;;\nesac\n'
    )
    nvcc.chmod(0o755)
    return str(folder)


def setup(tmp_path, *arguments, **env):
    """Run setup.py; PATH holds no compiler unless `env` brings one."""
    return subprocess.run(
        [sys.executable, 'setup.py', '-q', *arguments],
        cwd=ROOT,
        env={**os.environ, 'PATH': str(tmp_path), **env},
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_the_package_still_builds(tmp_path):
    run = setup(tmp_path, 'build', '--build-base', str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert 'without its compiled extension: no C++ compiler was found' in run.stdout
    built = {
        path.relative_to(tmp_path / 'lib').as_posix()
        for path in tmp_path.rglob('*.*')
        if path.is_file()
    }
    assert 'overlock_mm/ops/contmix/reference.py' in built
    assert 'overlock_mm/ops/csrc/common/window.h' in built
    assert 'overlock_mm/analysis/explorer_page/page.html' in built
    assert not any(name.endswith('.so') for name in built)


def test_the_extension_can_be_left_out(tmp_path):
    run = setup(tmp_path, '--name', PATH=os.environ['PATH'], OVERLOCK_WITH_EXT='0')
    assert 'without its compiled extension: OVERLOCK_WITH_EXT=0' in run.stdout
    assert run.stdout.endswith('overlock_mm\n')


@pytest.fixture
def module(monkeypatch):
    """setup.py as a module that sets nothing up."""
    monkeypatch.setenv('OVERLOCK_WITH_EXT', '0')
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    monkeypatch.setattr(setuptools, 'setup', lambda **_: None)
    spec = importlib.util.spec_from_file_location('overlock_setup', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_cuda_torch
def test_without_a_toolkit_the_cpu_kernels_are_compiled(module, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(tmp_path))
    assert not module.with_cuda()
    reason = f'CUDA_HOME={tmp_path} has no include/cuda_runtime.h'
    assert f'compiled without CUDA kernels: {reason}' in capsys.readouterr().out

    monkeypatch.setenv('FORCE_CUDA', '1')
    with pytest.raises(RuntimeError, match=f'FORCE_CUDA=1, but {reason}'):
        module.with_cuda()


@needs_cuda_torch
def test_nvcc_of_another_major_version_leaves_the_cpu_kernels(
    module, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', toolkit(tmp_path, '9.2'))
    assert not module.with_cuda()
    reason = f'nvcc is of CUDA 9.2 and torch of CUDA {torch.version.cuda}'
    assert f'compiled without CUDA kernels: {reason}' in capsys.readouterr().out

    monkeypatch.setenv('FORCE_CUDA', '1')
    with pytest.raises(RuntimeError, match=f'FORCE_CUDA=1, but {reason}'):
        module.with_cuda()


@needs_cuda_torch
def test_nvcc_of_the_right_version_compiles_for_what_it_and_torch_know_from_8_0_up(
    module, monkeypatch, tmp_path
):
    home = toolkit(tmp_path, torch.version.cuda, architectures=(70, 75, 80, 90, 999))
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', home)
    assert module.with_cuda()
    assert module.cuda_architectures() == '8.0;9.0+PTX'


@needs_cuda_torch
@pytest.mark.slow
def test_compilation_that_fails_does_not_stop_the_installation(tmp_path):
    home = toolkit(tmp_path, torch.version.cuda, architectures=(80, 90))
    (tmp_path / 'c++').symlink_to('/bin/false')
    (tmp_path / 'out').mkdir()
    arguments = ('build', '--build-base', str(tmp_path / 'out'))
    compilers = {'CXX': str(tmp_path / 'c++'), 'CC': str(tmp_path / 'c++'), 'CUDA_HOME': home}
    run = setup(tmp_path, *arguments, FORCE_CUDA='', **compilers)
    assert run.returncode == 0, run.stderr
    assert 'compiled without CUDA kernels: its compilation failed' in run.stdout
    assert 'installed without its compiled extension: its compilation failed' in run.stdout

    run = setup(tmp_path, *arguments, FORCE_CUDA='', OVERLOCK_WITH_EXT='1', **compilers)
    assert run.returncode != 0
