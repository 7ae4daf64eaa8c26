"""Images are read by the rules of the libraries' pipelines."""

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from overlock_mm.runtime.pictures import read_picture
from overlock_mm.utils.images import read_image

NOISE = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)


def save(path, mode, **kwargs):
    Image.fromarray(NOISE, 'RGBA').convert(mode).save(path, **kwargs)
    return path


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'P', '1'])
def test_three_channels_of_8_bits_as_mmcv_reads_them(mode, tmp_path):
    path = save(tmp_path / 'a.png', mode)
    pixels = read_image(path)
    assert pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, mmcv.imread(str(path)))


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'P', '1'])
def test_exported_files_get_the_same_pixels_without_opencv(mode, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    path = save(tmp_path / 'a.png', mode, exif=exif)
    assert np.array_equal(read_picture(path)[..., ::-1], read_image(path))


def test_the_orientation_is_that_of_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = save(tmp_path / 'a.jpg', 'RGB', exif=exif, quality=95)
    assert read_image(path).shape == (30, 20, 3)
    assert np.array_equal(read_image(path), mmcv.imread(str(path)))


def test_16_bits_are_read_by_their_upper_8(tmp_path):
    pixels = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    for read in (read_image, read_picture):
        assert np.array_equal(read(tmp_path / 'a.png')[..., 0], pixels >> 8)
    cv2.imwrite(str(tmp_path / 'dark.png'), pixels >> 4)
    with pytest.raises(ValueError, match='dark.png.* nearly black; scale the values'):
        read_image(tmp_path / 'dark.png')


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no image at .*none.png'):
        read_image(tmp_path / 'none.png')
    content = save(tmp_path / 'a.jpg', 'RGB').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(content[:-100])
    with pytest.raises(ValueError, match='a.jpg.* cannot be read as an image: truncated'):
        read_image(tmp_path / 'a.jpg')
