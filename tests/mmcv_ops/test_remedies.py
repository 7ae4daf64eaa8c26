"""Commands for what is missing fit what is installed."""

import importlib.metadata
from pathlib import Path

import pytest

from overlock_mm.mmcv_ops import remedies, report
from tests.mmcv_ops.families import stand_in


@pytest.fixture
def installed(monkeypatch):
    """Versions of distributions of mmcv; empty at first."""
    versions = {}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(remedies.importlib.metadata, 'version', version)
    monkeypatch.setattr(remedies, 'cpp_of_torch', lambda: 17)
    return versions


@pytest.mark.parametrize(
    ('distribution', 'command'),
    [
        ('onedl-mmcv', '`MMCV_WITH_OPS=1 pip install .* onedl-mmcv==2.0`'),
        ('mmcv', '`MMCV_WITH_OPS=1 pip install .* mmcv==2.0`'),
        ('mmcv-lite', '`pip uninstall -y mmcv-lite; MMCV_WITH_OPS=1 pip install .* mmcv==2.0`'),
    ],
)
def test_the_installed_distribution_is_compiled(distribution, command, installed):
    installed[distribution] = '2.0'
    with pytest.raises(NotImplementedError, match=f"'knn_forward'.*compile mmcv by {command}"):
        stand_in().knn_forward()


def test_an_operator_with_something_in_its_place(installed):
    with pytest.raises(NotImplementedError, match='Or use RoIAlign .* in place of PrRoIPool'):
        stand_in().prroi_pool_forward()
    with pytest.raises(NotImplementedError, match=r'Or use `upfirdn2d\(.*use_custom_op=False\)`'):
        stand_in().upfirdn2d()


def test_a_torch_that_needs_a_newer_cpp_than_mmcv(installed, monkeypatch):
    monkeypatch.setattr(remedies, 'cpp_of_torch', lambda: 20)
    text = remedies.about('knn_forward')
    assert 'asks the compiler for C++17' in text
    assert '"#error C++20 or later' in text
    assert '`make env MMCV=compiled`' in text
    monkeypatch.setattr(report.importlib, 'import_module', lambda name: stand_in())
    monkeypatch.setattr(report, 'is_stand_in', lambda module: True)
    assert 'A compiled mmcv is not needed' in report.operator_lines()[-1]


def test_the_cpp_that_torch_demands(tmp_path, monkeypatch):
    assert remedies.cpp_of_torch() >= 17
    (tmp_path / 'include' / 'ATen').mkdir(parents=True)
    (tmp_path / 'include' / 'ATen' / 'ATen.h').write_text(
        '#error C++23 or later compatible compiler is required to use ATen.'
    )

    class Spec:
        origin = str(Path(tmp_path, '__init__.py'))

    monkeypatch.setattr(remedies.importlib.util, 'find_spec', lambda name: Spec)
    assert remedies.cpp_of_torch() == 23


@pytest.mark.parametrize(
    ('torch_version', 'torchvision'),
    [('2.6.0+cu124', '==0.21.*'), ('2.11.0', '==0.26.*'), ('2.15.0', '>=0.29')],
)
def test_the_torchvision_for_a_torch(torch_version, torchvision):
    command = remedies.torchvision_for(torch_version)
    assert f'"torchvision{torchvision}"' in command
    assert ('--index-url' in command) == ('+' in torch_version)
