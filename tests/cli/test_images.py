"""What counts as the user's pictures."""

import cv2
import numpy as np
import pytest
from PIL import Image

from overlock_mm.cli.images import find_images, output_stems


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
    with pytest.raises(FileNotFoundError, match='holds no pictures'):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match='no picture, folder or match'):
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


def reason(path):
    with pytest.raises(ValueError) as error:
        find_images(path)
    return str(error.value)


def test_a_truncated_jpeg(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.jpg')
    assert find_images(tmp_path)
    content = (tmp_path / 'a.jpg').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(content[: len(content) // 2])
    assert 'a.jpg (truncated)' in reason(tmp_path)


def test_pixels_of_more_than_8_bits(tmp_path):
    grey = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
    files = {name: tmp_path / name for name in ('float.tif', 'dark.png', 'dark.tif', 'full.png')}
    cv2.imwrite(str(files['float.tif']), grey.astype(np.float32))
    for name in ('dark.png', 'dark.tif'):
        cv2.imwrite(str(files[name]), grey.astype(np.uint16))
    cv2.imwrite(str(files['full.png']), (grey * 16).astype(np.uint16))
    assert 'its pixels are float32; write 8 bits' in reason(files['float.tif'])
    for name in ('dark.png', 'dark.tif'):
        assert 'no value above 4095, so it would be read as nearly black' in reason(files[name])
    assert find_images(files['full.png'])


def test_a_picture_of_200_megapixels(tmp_path, monkeypatch):
    Image.new('L', (300, 200)).save(tmp_path / 'huge.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 20_000)
    assert 'huge.png (too large; cut it into tiles' in reason(tmp_path)


def test_files_for_another_loader(tmp_path):
    (tmp_path / 'five.tif').write_bytes(b'of five bands')
    assert find_images(tmp_path, verified=False) == [tmp_path / 'five.tif']


def test_bands_as_pages(tmp_path):
    pages = [Image.new('L', (8, 5)) for _ in range(5)]
    pages[0].save(tmp_path / 'five.tif', save_all=True, append_images=pages[1:])
    assert 'five.tif (5 pages of one size' in reason(tmp_path)
    smaller = [Image.new('L', (8 // k, 8 // k)) for k in (2, 4)]
    Image.new('L', (8, 8)).save(tmp_path / 'five.tif', save_all=True, append_images=smaller)
    assert find_images(tmp_path)
