"""Another project builds on an installed package: a wheel, or the sources as they are."""

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from overlock_mm.datasets.shapes import write_shapes
from tests.configs.conftest import ROOT
from tests.configs.test_packaging import STYLES

pytestmark = pytest.mark.slow

SOURCES = ROOT.parent
HOOK = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class CountingHook(Hook):
    iterations = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        CountingHook.iterations += 1
"""
CONFIG = """
_base_ = 'overlock_mm::demo/cascade_overlock_shapes.py'

custom_imports = dict(
    imports=[*_base_.custom_imports.imports, 'project_hook'], allow_failed_imports=False
)
custom_hooks = [dict(type='CountingHook')]
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=1, val_interval=1)
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)))
"""
TRAIN = """
import sys

import overlock_mm
from mmengine.config import Config
from mmengine.runner import Runner
from overlock_mm.utils.config import load_config

cfg = load_config('project_config.py', dict(data_root=sys.argv[1]))
cfg.work_dir = 'work'
runner = Runner.from_cfg(cfg)
runner.train()
metrics = runner.test()
import project_hook

print(overlock_mm.__file__, project_hook.CountingHook.iterations, 'coco/bbox_mAP' in metrics)
"""


def run(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    # Compiling the operators takes minutes and has tests of its own.
    environment |= {'OMP_NUM_THREADS': '1', 'OVERLOCK_WITH_EXT': '0'}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def _but_mim(ignore):
    # The one hidden folder of the package.
    return lambda folder, names: ignore(folder, names) - {'.mim'}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """A copy without what was built, links as links."""
    copy = tmp_path_factory.mktemp('sources') / 'overlock_mm'
    built = ('.*', 'build', 'data', 'dist', 'work_dirs', '*.egg-info', '*.so', '__pycache__')
    shutil.copytree(SOURCES, copy, symlinks=True, ignore=_but_mim(shutil.ignore_patterns(*built)))
    return copy


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def environment(request, sources, tmp_path_factory):
    """The Python of an environment of its own that has the package, and how it was installed."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / 'env', symlinks=True)
    python = folder / 'env/bin/python'
    # Everything but the package is taken from the environment of the tests.
    site_packages = run(
        python, '-c', "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    Path(site_packages.strip(), 'stack.pth').write_text(sysconfig.get_path('purelib') + '\n')
    install = [python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps']
    install += ['--no-build-isolation', '--ignore-installed']
    run(*install, *(['-e'] if request.param == 'editable' else []), sources, cwd=folder)
    return python, request.param


def test_all_styles_of_inheritance(environment, sources, tmp_path):
    python, how = environment
    for number, style in enumerate(STYLES.values()):
        (tmp_path / f'{number}.py').write_text(f'{style}\n')
    code = (
        'import overlock_mm; from mmengine.config import Config; '
        "print(overlock_mm.__file__, *(Config.fromfile(f'{i}.py').model.backbone.arch "
        f'for i in range({len(STYLES)})))'
    )
    place, *archs = run(python, '-c', code, cwd=tmp_path).split()
    assert archs == ['s'] * len(STYLES)
    expected = sources if how == 'editable' else python.parents[1]
    assert Path(place).is_relative_to(expected)
    if how == 'wheel':
        package = Path(place).parent
        assert not any(path.is_symlink() for path in package.rglob('*'))
        assert (package / '.mim/tools/visualization/demo.py').is_file()
        assert not (package / '.mim/tools/dev').exists()


def test_a_project_overrides_registers_trains_and_tests(environment, tmp_path):
    python, how = environment
    if how == 'editable':
        pytest.skip('Training does not depend on how the package was installed.')
    write_shapes(tmp_path / 'data', num_train=4, num_val=2)
    for name, text in (('project_hook', HOOK), ('project_config', CONFIG), ('train', TRAIN)):
        (tmp_path / f'{name}.py').write_text(text)
    printed = run(python, 'train.py', tmp_path / 'data/coco', cwd=tmp_path)
    place, iterations, tested = printed.splitlines()[-1].split()
    assert Path(place).is_relative_to(python.parents[1])
    assert (iterations, tested) == ('2', 'True')
    assert (tmp_path / 'work/epoch_1.pth').is_file()
