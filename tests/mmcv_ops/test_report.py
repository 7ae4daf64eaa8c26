"""What the doctor says about mmcv's operators."""

import importlib.metadata
from pathlib import Path, PurePosixPath

import pytest

from overlock_mm.mmcv_ops import report
from tests.mmcv_ops.families import installed, stand_in

STACK = {'torch': '2.11.0+cpu', 'torchvision': '0.26.0', 'onedl-mmcv': '2.3.6'}


@pytest.fixture
def folder(tmp_path):
    """An mmcv without its compiled operators."""
    (tmp_path / 'ops').mkdir()
    for path in ('__init__.py', 'ops/__init__.py'):
        (tmp_path / path).touch()
    return tmp_path


def test_this_environment():
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'torchvision')}
    assert report.operator_problems(versions) == []


def test_a_torchvision_for_several_versions_of_torch(monkeypatch):
    monkeypatch.setattr(report.importlib.metadata, 'requires', lambda _: ['torch (>=2.14.0)'])
    assert report.torchvision_problems({'torch': '2.15.0', 'torchvision': '0.29.2'}, True) == []


def test_each_operator_is_listed_with_its_library(monkeypatch):
    monkeypatch.setattr(report.importlib, 'import_module', lambda name: stand_in())
    monkeypatch.setattr(report, 'is_stand_in', lambda module: True)
    monkeypatch.setattr(report, 'too_new_for_mmcv', lambda: '')
    first, *libraries = report.operator_lines()
    assert 'none that are compiled' in first
    by_torchvision, by_torch = sorted(libraries, reverse=True)
    assert by_torchvision.startswith('  by torchvision: ')
    for name in ('nms', 'roi_align', 'DeformConv2d'):
        assert name in by_torchvision
    for name in ('soft_nms', 'roi_pool', 'CARAFEPack'):
        assert name in by_torch


def test_compiled_operators_are_named(monkeypatch):
    monkeypatch.setattr(report, 'is_stand_in', lambda module: False)
    monkeypatch.setattr(installed, '__file__', 'the/_ext.so', raising=False)
    assert report.operator_lines() == ['compiled with mmcv: the/_ext.so']


@pytest.mark.parametrize(
    ('versions', 'what', 'remedy'),
    [
        (STACK | {'torch': '2.12.0'}, 'needs torch ==2.11.0, but torch 2.12.0', '==0.27.*'),
        (
            STACK | {'mmcv-lite': '2.1.0'},
            'onedl-mmcv and mmcv-lite are both',
            'onedl-mmcv mmcv-lite',
        ),
        (
            {name: version for name, version in STACK.items() if name != 'torchvision'},
            'torchvision is not installed',
            'pip install',
        ),
    ],
)
def test_distributions_that_do_not_fit(versions, what, remedy, monkeypatch):
    monkeypatch.setattr(report, 'half_installed', lambda folder, names: [])
    monkeypatch.setattr(report.importlib.metadata, 'requires', lambda _: ['numpy', 'torch==2.11.0'])
    ((problem, command),) = report.operator_problems(versions)
    assert what in problem
    assert remedy in command


def test_a_pure_mmcv_is_whole(folder, monkeypatch):
    monkeypatch.setattr(report.importlib.metadata, 'files', lambda name: None)
    assert report.half_installed(folder, ['mmcv-lite']) == []


@pytest.mark.parametrize('lost', ['__init__.py', 'ops/__init__.py'])
def test_a_part_of_mmcv(folder, lost):
    (folder / lost).unlink()
    ((what, remedy),) = report.half_installed(folder, ['mmcv'])
    assert f'{folder} is only a part of mmcv' in what
    assert 'pip uninstall -y mmcv' in remedy


def test_compiled_operators_that_were_lost(folder, monkeypatch):
    recorded = [PurePosixPath('mmcv/_ext.cpython-311-x86_64-linux-gnu.so')]
    monkeypatch.setattr(report.importlib.metadata, 'files', lambda name: recorded)
    ((what, remedy),) = report.half_installed(folder, ['mmcv'])
    assert 'the file is missing' in what
    assert 'MMCV_WITH_OPS=0 pip install' in remedy
    assert report.compile_mmcv() in remedy


def test_compiled_operators_of_another_python(folder, monkeypatch):
    monkeypatch.setattr(report.importlib.metadata, 'files', lambda name: None)
    (folder / '_ext.cpython-38-x86_64-linux-gnu.so').touch()
    ((what, _),) = report.half_installed(folder, ['mmcv'])
    assert 'for another Python' in what


def test_the_page_has_the_table_of_the_code():
    page = Path(__file__).parents[2] / 'docs' / 'mmcv_operators.md'
    remedy = 'python -m overlock_mm.mmcv_ops.report prints the table that belongs there.'
    assert report.table() in page.read_text(), remedy
