"""The generated parts of the README are those of the metafiles and the results."""

import re

import pytest

from benchmarks import readme


def test_tables_are_current():
    text = readme.README.read_text()
    assert readme.filled(text) == text, 'Remedy: python -m benchmarks report'


def test_a_missing_place_is_an_error():
    with pytest.raises(ValueError, match="0 places for the part 'model zoo'"):
        readme.filled('# A page without tables')


def test_links_lead_to_files():
    links = re.findall(r'\]\((?!https?:)([^)#]+)', readme.README.read_text())
    assert len(links) > 20
    assert not [link for link in links if not (readme.ROOT / link).exists()]
