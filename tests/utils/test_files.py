"""Output files are written atomically."""

import json

import pytest

from overlock_mm.utils.files import replacing, write_json


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / 'new/picture.png'
    with replacing(path) as partial:
        partial.write_text('whole')
        assert partial.suffix == '.png' and not path.exists()
    assert path.read_text() == 'whole'
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_older_file(tmp_path):
    path = tmp_path / 'results.json'
    write_json(path, {'a': 1})
    for wrong, error in (({'a': object()}, TypeError), ({'a': float('nan')}, ValueError)):
        with pytest.raises(error):
            write_json(path, wrong)
    with pytest.raises(RuntimeError, match='in the middle'), replacing(path) as partial:
        partial.write_text('half')
        raise RuntimeError('in the middle')
    assert json.loads(path.read_text()) == {'a': 1}
    assert list(tmp_path.iterdir()) == [path]
