"""What counts as the user's pictures."""

import pytest

from overlock_mm.utils.images import find_images, output_stems


def test_a_file_a_folder_and_patterns(pictures, tmp_path):
    both = [pictures / 'a.png', pictures / 'b.jpg']
    assert find_images(pictures / 'a.png') == both[:1]
    assert find_images(pictures) == both
    assert find_images(f'{pictures}/?.*g') == both
    inner = tmp_path / 'one' / 'two'
    inner.mkdir(parents=True)
    (inner / 'c.PNG').write_bytes(both[0].read_bytes())
    assert find_images(f'{tmp_path}/**/*.PNG') == [inner / 'c.PNG']
    assert find_images(inner) == [inner / 'c.PNG']


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no images'):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match='no match'):
        find_images(tmp_path / '*.png')


def test_files_that_are_no_images(pictures, tmp_path):
    with pytest.raises(ValueError, match=r'1 of 1 files .*\n.*notes\.txt \(not a BMP'):
        find_images(pictures / 'notes.txt')
    content = (pictures / 'a.png').read_bytes()
    (tmp_path / 'good.png').write_bytes(content)
    (tmp_path / 'half.png').write_bytes(content[: len(content) // 2])
    (tmp_path / 'none.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='2 of 3') as error:
        find_images(tmp_path)
    assert 'half.png (not a BMP' in str(error.value)
    assert 'none.jpg (empty)' in str(error.value)


def test_names_of_results(tmp_path):
    paths = [tmp_path / name for name in ('a.png', 'b.png', 'b.jpg')]
    assert output_stems(paths) == ['a', 'b_png', 'b_jpg']
    with pytest.raises(ValueError, match="called 'a_png'"):
        output_stems([tmp_path / 'x' / 'a.png', tmp_path / 'y' / 'a.png'])
