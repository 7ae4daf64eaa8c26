"""Output files are written atomically."""

import json
import resource

import pytest

from overlock_mm.utils.files import replacing, replacing_folder, write_json


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


def test_without_space_the_message_names_the_file(tmp_path):
    path = tmp_path / 'results.json'
    write_json(path, {'a': 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'free some, or write elsewhere.*/results\.json'):
            write_json(path, list(range(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads(path.read_text()) == {'a': 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'data'
    with replacing_folder(path) as fresh:
        (fresh / 'a').write_text('1')
        assert not path.exists()
    with pytest.raises(RuntimeError, match='in the middle'), replacing_folder(path) as fresh:
        (fresh / 'b').write_text('2')
        raise RuntimeError('in the middle')
    assert [p.name for p in path.iterdir()] == ['a']
    with replacing_folder(path) as fresh:
        (fresh / 'b').write_text('2')
    assert [p.name for p in path.iterdir()] == ['b']
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / 'data'
    with pytest.raises(OSError), replacing_folder(path) as fresh:
        (fresh / 'a').write_text('1')
        path.mkdir()
        (path / 'other').write_text('2')
    assert [p.name for p in path.iterdir()] == ['other']
