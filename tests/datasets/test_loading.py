"""Errors name truncated files of every format, for every decoder."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, features

from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.loading import check_complete, load_with_name

FORMATS = {
    'bmp': {},
    'gif': {},
    'jp2': dict(irreversible=True),
    'jpg': dict(progressive=True),
    'png': {},
    'tif': {},
    'tiff': dict(compression='tiff_lzw'),
    'webp': dict(lossless=True),
}
CODECS = {'jp2': 'jpg_2000', 'tiff': 'libtiff', 'webp': 'webp'}


@pytest.fixture(params=FORMATS)
def picture(request, tmp_path):
    suffix = request.param
    if suffix in CODECS and not features.check(CODECS[suffix]):
        pytest.skip(f'This Pillow cannot write {suffix}.')
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / f'photo.{suffix}'
    Image.fromarray(noise).save(path, **FORMATS[suffix])
    return path


def load(path, backend):
    check_complete(dict(img_path=str(path)))
    transform = LoadImageFromFile(imdecode_backend=backend)
    return load_with_name(transform, dict(img_path=str(path)))['img']


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_a_truncated_file_is_named(picture, backend):
    if backend == 'cv2' and not cv2.haveImageReader(str(picture)):
        pytest.skip(f'This OpenCV cannot read {picture.suffix}.')
    whole = picture.read_bytes()
    assert load(picture, backend).shape == (48, 64, 3)
    for kept in (len(whole) - 100, len(whole) // 2, 20, 0):
        picture.write_bytes(whole[:kept])
        with pytest.raises(DataError) as caught:
            load(picture, backend)
        assert str(caught.value).startswith(f'{picture} cannot be read as an image')


def test_a_picture_too_large_for_pillow_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / 'large.png'
    Image.new('L', (64, 48)).save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(DataError, match=r'large\.png is too large .* Cut it into tiles'):
        load(path, 'pillow')
    assert load(path, 'cv2').shape == (48, 64, 3)
