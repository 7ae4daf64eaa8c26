"""``tools/analysis_tools/print_recipe.py``: groups of parameters, rates and samples."""

import re

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample
from PIL import Image

from overlock_mm.analysis.recipe import SamplesAsSeen, learning_rates, parameter_groups
from overlock_mm.datasets.shapes import write_classification
from overlock_mm.utils.config import load_config
from tests.configs.test_learning_rates import timm_cosine
from tests.conftest import DEMO, ROOT
from tools.analysis_tools import print_recipe as tool

CLASSIFIER = str(ROOT / 'configs/demo/classifier_overlock_shapes.py')


def number(text, pattern):
    return int(re.search(pattern, text)[1].replace(',', ''))


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes')
    write_classification(root, num_train=10, num_val=5)
    return root


def test_a_detector(shapes_root, tmp_path, capsys):
    tool.main([DEMO, '--work-dir', str(tmp_path), '--cfg-options', f'data_root={shapes_root}'])
    out = capsys.readouterr().out
    cfg = load_config(DEMO)
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(cfg.model)
    with_decay = number(out, r'With weight decay: ([\d,]+) tensors')
    without_decay = number(out, r'Without weight decay: ([\d,]+) tensors')
    assert with_decay + without_decay == len(list(model.parameters()))
    # Two norms of each of three blocks, of four outputs and of the overview: weights and biases.
    assert without_decay == 2 * (2 * 3 + 4 + 1)
    # Four images in batches of two.
    assert '5 epochs of 2 steps, 10 steps in all, each of 1 x 2 images' in out
    for name in ('learning_rate.png', 'samples.png'):
        with Image.open(tmp_path / 'recipe' / name) as picture:
            assert len(np.unique(np.array(picture))) > 50


def test_a_classifier_and_its_number_of_samples(classes, tmp_path):
    options = ['--work-dir', str(tmp_path), '--cfg-options', f'data_root={classes}']
    tool.main([CLASSIFIER, '--samples', '2', *options])
    with Image.open(tmp_path / 'recipe/samples.png') as picture:
        assert picture.width == 2 * 480  # of 96 x 96, enlarged


def test_without_data(tmp_path, capsys):
    options = ['--work-dir', str(tmp_path), '--cfg-options', 'data_root=nowhere']
    tool.main([DEMO, '--samples', '0', '--epoch-length', '3', '--processes', '4', *options])
    assert '5 epochs of 3 steps, 15 steps in all, each of 4 x 2 images' in capsys.readouterr().out
    assert [path.name for path in (tmp_path / 'recipe').iterdir()] == ['learning_rate.png']
    with pytest.raises(SystemExit):
        tool.main([DEMO, *options])
    assert 'data_root' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('images', 'processes', 'batch_size', 'drop_last', 'steps'),
    [
        (1_281_167, 8, 256, True, 625),  # ImageNet, as published
        (1_281_167, 8, 256, False, 626),
        (117_266, 8, 2, False, 7330),  # COCO
    ],
)
def test_steps_of_an_epoch(images, processes, batch_size, drop_last, steps):
    cfg = load_config(CLASSIFIER)
    cfg.train_dataloader.update(batch_size=batch_size, drop_last=drop_last)
    assert tool.count_steps(cfg, images, processes) == steps


def test_rates_are_those_of_a_run():
    cfg = load_config(str(ROOT / 'configs/classification/overlock_t.py'))
    rates = learning_rates(cfg, 3)
    expected = [timm_cosine(step // 3) for step in range(3 * 310)]
    assert rates == pytest.approx(expected, rel=5e-4)
    # The published rate of the last of 160,000 iterations.
    cfg = load_config(str(ROOT / 'configs/segmentation/upernet_overlock_t.py'))
    assert learning_rates(cfg, 1)[-1] == pytest.approx(6e-5 / 160_000, rel=1e-6)


def test_groups_by_rate_and_decay():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4), torch.nn.Linear(1, 1))
    model[2].requires_grad_(False)
    optim_wrapper = dict(
        type='AmpOptimWrapper',
        loss_scale='dynamic',
        optimizer=dict(type='AdamW', lr=0.3, weight_decay=0.1),
        paramwise_cfg=dict(bias_decay_mult=0.0, custom_keys={'1.': dict(lr_mult=0.1)}),
    )
    first, second, third = parameter_groups(model, optim_wrapper)
    assert (first.lr_mult, first.weight_decay, first.names, first.numbers) == (
        1.0,
        0.1,
        ('0.weight',),
        6,
    )
    assert (second.lr_mult, second.weight_decay, second.names) == (1.0, 0.0, ('0.bias',))
    assert (third.lr_mult, third.names, third.numbers) == (0.1, ('1.weight', '1.bias'), 16)


def test_samples_are_what_the_model_sees():
    class TwoColours(list):
        metainfo = dict(classes=('blue', 'red'))

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 0], images[1, 2] = 200, 100  # BGR
    dataset = TwoColours(
        dict(inputs=image, data_samples=DataSample().set_gt_label(label))
        for label, image in enumerate(images)
    )
    preprocessor = dict(
        type='ClsDataPreprocessor', num_classes=2, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True
    )
    model = torch.nn.Module()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model.data_preprocessor = MODELS.build(preprocessor)
        plain = SamplesAsSeen(dataset, model, [0, 1])
        mix = dict(augments=dict(type='Mixup', alpha=1.0))
        model.data_preprocessor = MODELS.build(dict(preprocessor, batch_augments=mix))
        mixed = SamplesAsSeen(dataset, model, [0, 1])
    assert all(
        torch.equal(sample['inputs'], image) for sample, image in zip(plain, images, strict=True)
    )
    for sample in mixed:
        scores = sample['data_samples'].gt_score
        assert sample['inputs'][0].unique().item() == round(200 * scores[0].item())
        assert sample['inputs'][2].unique().item() == round(100 * scores[1].item())
        assert sample['data_samples'].gt_label[0] == scores.argmax()
