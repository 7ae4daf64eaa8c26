"""Augmentations of the recipes, by statistics of many draws."""

import io
import math
from collections import Counter

import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS, DefaultScope
from mmpretrain.datasets.transforms.auto_augment import RANDAUG_POLICIES
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop


def build(step, scope):
    with DefaultScope.overwrite_default_scope(scope):
        return TRANSFORMS.build(step)


def share(hits, draws, probability):
    """Whether a count agrees with a probability, to four deviations."""
    return abs(hits - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability))


@pytest.fixture
def imagenet(load):
    np.random.seed(0)
    torch.manual_seed(0)
    return load('classification/overlock_t.py')


def test_order_on_imagenet(imagenet):
    """Erasing, the last in timm, acts on the batch."""
    assert [step.type for step in imagenet.train_pipeline] == [
        'LoadImageFromFile',
        'RandomChoice',
        'RandomFlip',
        'RandAugment',
        'PackInputs',
    ]


def test_operations_of_randaugment(imagenet):
    """timm draws two of fifteen operations for each image, with repetition."""
    augment = build(imagenet.train_pipeline[3], 'mmpretrain')

    def operation(policy):
        return (policy['type'], policy.get('direction'), tuple(policy.get('magnitude_range', ())))

    published = {operation(policy) for policy in RANDAUG_POLICIES['timm_increasing']}
    draws = 15_000
    drawn = [i for _ in range(draws // 2) for i in augment.random_policy_indices()]
    counts = Counter(operation(augment.policies[i]) for i in drawn)
    assert counts.keys() == published
    assert len(published) == 15
    for count in counts.values():
        assert share(count, draws, 1 / 15)
    interpolated = Counter(
        augment.transforms[i].interpolation
        for i in drawn
        if augment.policies[i]['type'] in ('Rotate', 'Shear', 'Translate')
    )
    assert interpolated.keys() == {'bilinear', 'bicubic'}
    assert share(interpolated['bilinear'], interpolated.total(), 0.5)


@pytest.mark.parametrize(
    ('kind', 'at_9'),
    [
        # What timm makes of level 9 of 10, with "increasing" ranges.
        ('Rotate', 27.0),
        ('Shear', 0.27),
        ('Translate', 0.405),
        ('Solarize', 25.6),
        ('SolarizeAdd', 99.0),
        ('Posterize', 0.4),
        ('ColorTransform', 0.81),
        ('Sharpness', 0.81),
    ],
)
def test_magnitudes_of_randaugment(kind, at_9, imagenet):
    augment = build(imagenet.train_pipeline[3], 'mmpretrain')
    transform = next(t for t in augment.transforms if type(t).__name__ == kind)
    levels = np.clip(np.random.default_rng(0).normal(9, 0.5, 4000), 0, 10)
    start, end = transform.magnitude_range
    assert at_9 == pytest.approx(start + 0.9 * (end - start))
    magnitudes = [transform.random_magnitude() for _ in range(4000)]
    expected = start + levels / 10 * (end - start)
    assert np.mean(magnitudes) == pytest.approx(expected.mean(), abs=0.003 * abs(end - start))
    assert np.std(magnitudes) == pytest.approx(expected.std(), rel=0.1)
    assert share(sum(transform.random_disable() for _ in range(4000)), 4000, 0.5)
    if kind in ('Rotate', 'Shear', 'Translate', 'ColorTransform', 'Sharpness'):
        assert share(sum(transform.random_negative(1) < 0 for _ in range(4000)), 4000, 0.5)


def test_crops_are_distributed_as_those_of_torchvision(imagenet):
    """From which timm has its own."""
    choices = build(imagenet.train_pipeline[1], 'mmpretrain')
    crops = [transform.transforms[0] for transform in choices.transforms]
    assert {(crop.backend, crop.interpolation) for crop in crops} == {
        ('pillow', 'bilinear'),
        ('pillow', 'bicubic'),
    }
    drawn = Counter(choices.random_pipeline_index() for _ in range(2000))
    assert share(drawn[0], 2000, 0.5)
    height, width = 375, 500
    image = torch.zeros(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)]
    )
    for crop in crops:
        offsets = np.array(
            [crop.rand_crop_params(np.zeros((height, width, 3), np.uint8)) for _ in range(2000)]
        )
        for column in range(4):  # top, left, height, width
            assert stats.ks_2samp(offsets[:, column], theirs[:, column]).pvalue > 1e-4
        ratio = [array[:, 3] / array[:, 2] for array in (offsets, theirs)]
        assert stats.ks_2samp(*ratio).pvalue > 1e-4


def jpeg(image, subsampling, **kwargs):
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=75, subsampling=subsampling, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:0'])
def test_decoding_on_imagenet(subsampling, imagenet):
    """The pixels are OpenCV's, those of PIL; an orientation in the file changes nothing."""
    load = imagenet.test_pipeline[0]

    def decode(data, **settings):
        settings = {'backend': load.imdecode_backend, 'flag': load.color_type} | settings
        return mmcv.imfrombytes(data, **settings)

    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((75, 53), Image.Resampling.BICUBIC)
    plain = jpeg(image, subsampling)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = jpeg(image, subsampling, exif=exif)
    published = np.array(Image.open(io.BytesIO(plain)).convert('RGB'))[..., ::-1]
    assert np.array_equal(decode(plain), published)
    assert np.array_equal(decode(turned), published)
    assert np.array_equal(decode(plain, backend='cv2', flag='color'), published)
    assert decode(turned, backend='cv2', flag='color').shape == (75, 53, 3)


def test_sizes_on_coco_3x(load):
    """Half of the images are resized as they are, half after a crop from a resized image."""
    np.random.seed(0)
    cfg = load('detection/mask_rcnn_overlock_t_3x.py')
    choice = build(cfg.train_pipeline[3], 'mmdet')
    draws = 200
    cropped = sum(choice.random_pipeline_index() for _ in range(draws))
    assert share(cropped, draws, 0.5)
    plain = choice.transforms[0].transforms[0]
    sides = Counter()
    for _ in range(1100):
        scale, _ = plain._random_select()
        sides[scale] += 1
    assert sides.keys() == {(side, 1333) for side in range(480, 801, 32)}
    assert all(share(count, 1100, 1 / 11) for count in sides.values())


def test_sizes_on_ade20k(load):
    """Ratios of 0.5 to 2, drawn evenly, of 2048 x 512."""
    np.random.seed(0)
    cfg = load('segmentation/upernet_overlock_t.py')
    resize = build(cfg.train_pipeline[2], 'mmseg')
    ratios = np.array([resize._random_scale()[1] / 512 for _ in range(2000)])
    assert stats.kstest(ratios, 'uniform', (0.5, 1.5)).pvalue > 1e-4
