"""Erasing from a mixed batch, by statistics of many images."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

from overlock_mm.models.batch_augments import MixThenErase

MIXES = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
# Far from any noise.
FLAT = 100.0


def erased(count, size=64, **settings):
    """Whether each of many flat images was erased from, and the masks of those that were."""
    np.random.seed(0)
    torch.manual_seed(0)
    augment = MixThenErase(MIXES, **settings)
    images, _ = augment(torch.full((count, 3, size, size), FLAT), torch.eye(count))
    masks = images[:, 0] != FLAT
    return images, masks, masks.flatten(1).any(1)


def timm_rectangle(height, width, generator):
    """A rectangle of timm 0.6.12's ``RandomErasing``: (height, width)."""
    while True:
        area = generator.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        if w < width and h < height:
            return h, w


def test_rectangles_are_distributed_as_those_of_timm():
    images, masks, which = erased(4000, size=48, erase_prob=0.25)
    assert which.float().mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    rows, columns = masks[which].any(2), masks[which].any(1)
    ours = [(int(r.sum()), int(c.sum())) for r, c in zip(rows, columns, strict=True)]
    # Each is one full rectangle.
    assert [h * w for h, w in ours] == masks[which].sum((1, 2)).tolist()
    generator = random.Random(0)
    theirs = [timm_rectangle(48, 48, generator) for _ in range(4000)]
    for figure in (lambda h, w: h * w, lambda h, w: h / w, lambda h, w: h):
        result = stats.ks_2samp([figure(*x) for x in ours], [figure(*x) for x in theirs])
        assert result.pvalue > 1e-3
    # Anywhere in the image: between 0 and what is left of it.
    tops = [
        (int(r.int().argmax()) + 0.5) / (48 - h + 1) for r, (h, _) in zip(rows, ours, strict=True)
    ]
    assert stats.kstest(tops, 'uniform').pvalue > 1e-4


def test_noise_is_normal_and_of_its_own_in_every_value():
    images, masks, which = erased(200, erase_prob=1.0)
    assert which.all()
    noise = images.movedim(1, -1)[masks]  # [values, 3]
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert noise.abs().max() > 4  # an image of 0 to 255 would end at 2.2 to 2.6
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.02


@pytest.mark.parametrize('mix', MIXES)
def test_no_image_of_a_mixture_shows_through_the_noise(mix):
    np.random.seed(1)
    torch.manual_seed(1)
    images = torch.tensor([FLAT, -FLAT]).view(2, 1, 1, 1).repeat(50, 3, 32, 32)
    labels = torch.eye(2).repeat(50, 1)
    mixed, scores = MixThenErase([mix], erase_prob=1.0)(images, labels)
    masks = mixed[:, 0].abs() < 6
    for mask, image, score in zip(masks, mixed, scores, strict=True):
        # What is not noise has the label's share of both images.
        rest = image[:, ~mask].mean().item() / FLAT
        if mix['type'] == 'Mixup' and abs(rest) > 0.1:
            assert mask.sum() in range(int(0.015 * 1024), int(0.36 * 1024))
            assert rest == pytest.approx((score[0] - score[1]).item(), abs=1e-5)
    assert scores.sum(1).tolist() == pytest.approx([1.0] * 100)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(erase_prob=1.5), 'erase_prob must be in'),
        (dict(area_ratio=(0.5, 0.2)), 'area_ratio must rise'),
        (dict(min_aspect=0.0), 'min_aspect must be in'),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        MixThenErase(MIXES, **wrong)
