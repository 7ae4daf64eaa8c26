"""CONTRIBUTING.md says what the linters check."""

import re

import pytest

from tests.docs.pages import ROOT


def test_the_table_of_packages_is_the_order_of_imports():
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 has no tomllib.')
    pyproject = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    contract = pyproject['tool']['importlinter']['contracts'][0]
    assert 'ignore_imports' not in contract  # no exceptions
    layers = [name for row in contract['layers'] for name in row.split(' | ')]
    rows = re.findall(r'^\| (`overlock_mm/.*?) \|', (ROOT / 'CONTRIBUTING.md').read_text(), re.M)
    names = [
        name.removeprefix('overlock_mm/').removesuffix('.py')
        for row in rows
        for name in re.findall(r'`(.*?)`', row)
    ]
    assert names == [name for name in layers if name != 'version']
