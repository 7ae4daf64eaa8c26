"""Receptive fields that are known in closed form, and those of a small OverLoCK."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.analysis.networks import output_module, output_names
from overlock_mm.analysis.receptive_field import (
    SHARES,
    ReceptiveField,
    measure_receptive_field,
    random_images,
    square_images,
)
from overlock_mm.models.arch import STAGES
from tests.models.helpers import TINY

SIZE = 33


def box(size, channels=1, stride=1, weight=1.0):
    conv = nn.Conv2d(channels, 1, size, stride, padding=size // 2, bias=False)
    nn.init.constant_(conv.weight, weight)
    return conv


def field_of(network, *images):
    return measure_receptive_field(network, network[-1], images)


def smallest_side(scores, share):
    """The definition, square by square."""
    size, centre = len(scores), len(scores) // 2
    for radius in range(size):
        low = max(0, centre - radius)
        if scores[low : centre + radius + 1, low : centre + radius + 1].sum() >= share * (
            scores.sum()
        ):
            return min(2 * radius + 1, size)
    raise AssertionError


def test_one_box():
    """Each of its 9 x 9 pixels counts the same: 5 x 5 of them are 31 %, 7 x 7 are 60 %."""
    field = field_of(nn.Sequential(box(9, 3)), torch.rand(1, 3, SIZE, SIZE))
    expected = np.zeros((SIZE, SIZE))
    expected[12:21, 12:21] = 1
    np.testing.assert_allclose(field.scores, expected, rtol=1e-12)
    assert [field.side(share) for share in SHARES] == [5, 5, 7, 9]
    assert field.side_ratio(0.99) == 9 / SIZE
    assert field.side(1.0) == 9


def test_boxes_in_a_row():
    """Their field is the convolution of the boxes, in each direction by itself."""
    field = field_of(
        nn.Sequential(box(3, 3), box(5), box(7)), *torch.rand(4, 1, 3, SIZE, SIZE).unbind()
    )
    profile = np.convolve(np.convolve(np.ones(3), np.ones(5)), np.ones(7))
    contribution = np.pad(3 * np.outer(profile, profile), (SIZE - len(profile)) // 2)
    expected = np.log10(1 + contribution)
    np.testing.assert_allclose(field.scores, expected / expected.max(), rtol=1e-6)
    for share in SHARES:
        assert field.side(share) == smallest_side(expected, share)


def test_strided_box_on_an_even_image():
    """The central of 8 positions is number 4; its window is centred on pixel 16."""
    field = field_of(nn.Sequential(box(5, 3, stride=4)), torch.rand(1, 3, 32, 32))
    expected = np.zeros((32, 32))
    expected[14:19, 14:19] = 1
    np.testing.assert_allclose(field.scores, expected, rtol=1e-12)


def test_it_reaches_the_border_of_an_even_image():
    field = ReceptiveField(np.ones((8, 8)))
    assert field.side(1.0) == 8
    assert field.side(0.01) == 1
    with pytest.raises(ValueError, match=r'got 99'):
        field.side(99)


def test_contributions_are_averaged_before_the_logarithm():
    """Rectified, so an image counts only where it makes the output positive."""
    images = torch.rand(2, 3, SIZE, SIZE)
    network = nn.Sequential(box(9, 3))
    half = field_of(network, images[:1], -images[1:])
    as_batch = field_of(network, torch.cat((images[:1], -images[1:])))
    # Half of 1 per channel; the value cancels where it is the same everywhere.
    np.testing.assert_array_equal(half.scores, as_batch.scores)
    ramp = nn.Sequential(box(9, 3))
    ramp[0].weight.data *= torch.arange(1.0, 10)
    unscaled = np.log10(1 + 3 * np.arange(1.0, 10))
    averaged = np.log10(1 + 3 * np.arange(1.0, 10) / 2)
    got = field_of(ramp, images[:1], -images[1:]).scores[16, 12:21]
    np.testing.assert_allclose(got, averaged / averaged[-1], rtol=1e-6)
    assert not np.allclose(got, unscaled / unscaled[-1])


@pytest.mark.parametrize(
    ('network', 'images', 'message'),
    [
        (nn.Sequential(box(3, 3, weight=float('nan'))), torch.rand(1, 1, 3, 33, 33), 'not finite'),
        (nn.Sequential(box(3, 3, weight=0.0)), torch.rand(1, 1, 3, 33, 33), 'are zero'),
        # Nowhere positive.
        (nn.Sequential(box(3, 3)), -torch.rand(1, 1, 3, 33, 33), 'are zero'),
        (nn.Sequential(box(3, 3)), torch.rand(1, 1, 3, 33, 40), r'got \[1, 3, 33, 40\]'),
        (nn.Sequential(box(3, 3)), [], 'there are none'),
        (nn.Sequential(box(3, 3)), [torch.rand(1, 3, n, n) for n in (33, 40)], 'got 33 and 40'),
        (nn.Sequential(box(3, 3), nn.Flatten()), torch.rand(1, 1, 3, 33, 33), 'one map'),
    ],
)
def test_no_black_pictures(network, images, message):
    with pytest.raises(ValueError, match=message):
        field_of(network, *images)


@pytest.fixture(scope='module')
def overlock():
    torch.manual_seed(0)
    return OverLoCK(TINY, out_indices=(2, 4)).eval().requires_grad_(False)


def test_stages_of_an_overlock(overlock):
    """All stages have a field, and half of its weight lies further out in the last than the first.

    Squeeze-and-excitation lets the first stage see a little of everything, so no more is certain.
    """
    assert output_names(overlock) == [*STAGES, 'out0', 'out1']
    overlock = OverLoCK(TINY).eval().requires_grad_(False)
    sides = []
    for stage in STAGES:
        field = measure_receptive_field(
            overlock, output_module(overlock, stage), random_images(1, 96)
        )
        assert field.scores.shape == (96, 96)
        assert field.scores.max() == 1
        sides.append(field.side(0.5))
    assert sides[0] < sides[-1]


def test_outputs_by_number_leave_the_network_as_it_was(overlock):
    image = next(random_images(1, 64))
    before = overlock(image)
    seen = []
    output_module(overlock, 'out1').register_forward_hook(lambda *args: seen.append(args[-1]))
    after = overlock(image)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(seen[0], before[1])


def test_modules_by_their_path(overlock):
    assert output_module(overlock, 'base_net.stages.0') is output_module(overlock, 'base1')
    assert output_module(overlock, 'focus_net.stages.1.1') is output_module(overlock, 'focus4')


@pytest.mark.parametrize('name', ['focus5', 'out2', 'base_net.stage.0', ''])
def test_an_output_that_does_not_exist(overlock, name):
    with pytest.raises(ValueError, match=r'has no output') as error:
        output_module(overlock, name)
    for known in output_names(overlock):
        assert known in str(error.value)


def test_pictures_become_inputs(tmp_path):
    """In BGR as read, turned round and normalised by the model's own preprocessor."""
    picture = np.zeros((20, 50, 3), np.uint8)
    picture[...] = (10, 20, 30)
    cv2.imwrite(str(tmp_path / 'picture.png'), picture)
    preprocessor = ImgDataPreprocessor(
        mean=[20.0, 20.0, 20.0], std=[10.0, 10.0, 10.0], pad_size_divisor=32, bgr_to_rgb=True
    )
    (image,) = square_images([tmp_path / 'picture.png'], 40, preprocessor)
    expected = torch.tensor([1.0, 0.0, -1.0])[None, :, None, None].expand(1, 3, 40, 40)
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
