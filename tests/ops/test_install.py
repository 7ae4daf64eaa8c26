"""The choices of setup.py: which extension is built, and what is said when none is."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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


def test_force_cuda_without_a_toolkit_fails(tmp_path):
    (tmp_path / 'c++').symlink_to('/bin/true')
    run = setup(tmp_path, '--name', FORCE_CUDA='1', CUDA_HOME=str(tmp_path))
    assert run.returncode != 0
    assert f'CUDA_HOME={tmp_path} has no include/cuda_runtime.h' in run.stderr


def test_without_a_toolkit_the_cpu_kernels_are_compiled(tmp_path):
    (tmp_path / 'c++').symlink_to('/bin/true')
    run = setup(tmp_path, '--name', FORCE_CUDA='', CUDA_HOME=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert 'compiled without CUDA kernels' in run.stdout
