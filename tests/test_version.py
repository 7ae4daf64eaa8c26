import pytest

from overlock_mm.version import check_torch


@pytest.mark.parametrize('version', ['2.6.0', '2.11.0+cu130', '3.0.0a0'])
def test_new_enough(version):
    check_torch(version)


@pytest.mark.parametrize('version', ['2.5.1', '1.13.1+cpu'])
def test_too_old(version):
    with pytest.raises(ImportError, match=f'needs torch 2.6 or newer, found {version[:6]}'):
        check_torch(version)
