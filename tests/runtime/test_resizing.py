"""Pixels of OpenCV and Pillow without OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from overlock_mm.runtime.resizing import resize

SIZES = [
    ((60, 80), (100, 133)),
    ((108, 192), (75, 133)),
    ((64, 96), (32, 48)),
    ((77, 53), (200, 32)),
]
METHODS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
}


def picture(size, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(dtype)


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize(('old', 'new'), SIZES)
def test_pixels_of_opencv(old, new, name):
    expected = cv2.resize(picture(old), new[::-1], interpolation=METHODS[name])
    difference = np.abs(resize(picture(old), new, name, 'cv2').astype(int) - expected)
    # OpenCV adds the four rows of a bicubic filter in float32.
    assert difference.max() <= (name == 'bicubic')


@pytest.mark.parametrize(('old', 'new'), SIZES)
def test_values_of_opencv(old, new):
    expected = cv2.resize(picture(old, np.float32), new[::-1])
    actual = resize(picture(old, np.float32), new, 'bilinear', 'cv2')
    np.testing.assert_allclose(actual, expected, atol=0.01)


def test_corners_of_torch():
    image = picture((20, 30), np.float32)
    maps = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(maps, (47, 33), mode='bilinear', align_corners=True)
    actual = resize(image, (47, 33), 'corners', 'cv2')
    np.testing.assert_allclose(actual, expected[0].permute(1, 2, 0), atol=1e-3)


@pytest.mark.parametrize('channels', (1, 3, 5))
def test_pixels_of_pillow(channels):
    image = np.random.default_rng(0).integers(0, 256, (50, 60, channels)).astype(np.uint8)
    actual = resize(image, (30, 70), 'bicubic', 'pillow')
    for i in range(channels):
        one = Image.fromarray(image[..., i]).resize((70, 30), Image.Resampling.BICUBIC)
        assert (actual[..., i] == np.asarray(one)).all()
