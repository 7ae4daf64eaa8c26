"""The command that writes the page of dynamic kernels, and what its user can get wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from overlock_mm import OverLoCK
from overlock_mm.analysis import contmix_kernels
from overlock_mm.analysis.networks import load_network
from overlock_mm.analysis.pictures import as_input, read_picture
from overlock_mm.utils.config import load_config
from tests.conftest import DEMO
from tools.visualization import explore_contmix

NORMAL = [(123.675, 116.28, 103.53), (58.395, 57.12, 57.375)]


@pytest.fixture(scope='module')
def detector(untrained):
    """Arguments: a config and a checkpoint."""
    return untrained('detection')


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    """A picture of 100 x 140 pixels."""
    path = tmp_path_factory.mktemp('pictures') / 'noise.png'
    noise = np.random.default_rng(0).integers(0, 255, (100, 140, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def no_work(monkeypatch):
    """The network must not run."""

    def refuse(*args, **kwargs):
        raise AssertionError('the network has run')

    monkeypatch.setattr(OverLoCK, 'forward', refuse)


def blocks_of(page):
    return [block['name'] for block in data_of(page)['blocks']]


def data_of(page):
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding='utf-8'), re.S)
    return json.loads(text)


@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_page(untrained, task, image, tmp_path, capsys):
    out = tmp_path / 'new' / 'page.html'
    config, checkpoint = untrained(task)
    explore_contmix.main([config, checkpoint, str(image), '--out', str(out)])
    assert 'MB, 3 blocks.' in capsys.readouterr().out
    assert blocks_of(out) == ['focus3.0', 'focus3.1', 'focus4.0']
    assert (data_of(out)['image']['width'], data_of(out)['image']['height']) == (140, 100)
    assert f'{Path(config).stem}, weights.pth, noise.png at 140 × 100 pixels' in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ['page.html']


def test_chosen_blocks_and_shape(detector, image, tmp_path):
    out = tmp_path / 'page.html'
    options = ['--blocks', 'focus4.0', '--shape', '64', '96', '--out', str(out)]
    explore_contmix.main([*detector, str(image), *options])
    assert blocks_of(out) == ['focus4.0']
    assert data_of(out)['blocks'][0]['rowEdges'][-1] == 64


def test_blocks_that_do_not_fit_are_named(detector, image, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'page.html'
    command = [*detector, str(image), '--out', str(out)]
    explore_contmix.main(command)
    limit = out.stat().st_size - 1
    monkeypatch.setattr(explore_contmix, 'MAX_PAGE_BYTES', limit)
    explore_contmix.main(command)
    assert out.stat().st_size <= limit
    assert blocks_of(out) == ['focus3.0', 'focus4.0']
    assert 'Left out to stay below 0 MB: focus3.1. Choose with' in capsys.readouterr().out


def test_still_picture(detector, image, tmp_path):
    out = tmp_path / 'kernels.png'
    place = ['--position', '70', '50', '--group', '3', '--blocks', 'focus4.0']
    explore_contmix.main([*detector, str(image), '--figure', str(out), *place])
    pixels = np.asarray(Image.open(out).convert('RGB'))
    assert pixels.shape[1] > 800 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    assert [path.name for path in tmp_path.iterdir()] == ['kernels.png']


@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_the_picture_is_normalised_as_the_config_says(untrained, task, image):
    model = load_network(*untrained(task)).model
    picture = read_picture(image).pixels
    mean, std = (np.array(values) for values in NORMAL)
    inputs = as_input(model, picture)
    assert inputs.shape == (1, 3, 100, 140)  # nothing is padded
    assert np.abs(inputs[0].numpy() - ((picture - mean) / std).transpose(2, 0, 1)).max() < 1e-5
    kernels = contmix_kernels(model, inputs, 'focus3.0', (139, 99))
    assert kernels.token == tuple(size - 1 for size in kernels.mixed_size)


def test_large_pictures_are_made_smaller(tmp_path):
    path = tmp_path / 'large.jpg'
    Image.new('L', (1024, 300)).save(path)
    picture = read_picture(path)
    assert picture.pixels.shape == (150, 512, 3)
    assert picture.resized((1000, 30)) == (500, 15)  # a place in the file
    assert read_picture(path, (40, 50)).pixels.shape == (40, 50, 3)


@pytest.mark.usefixtures('no_work')
class TestBadInput:
    def test_no_image(self, fails, detector, tmp_path):
        text = tmp_path / 'notes.jpg'
        text.write_text('not an image')
        assert f'{str(text)!r} cannot be read as an image' in fails(
            explore_contmix.main, *detector, text
        )
        missing = tmp_path / 'missing.jpg'
        assert f'no image at {str(missing)!r}' in fails(explore_contmix.main, *detector, missing)

    def test_image_that_is_too_small(self, fails, detector, image):
        message = fails(explore_contmix.main, *detector, image, '--shape', '31', '64')
        assert 'sides of at least 32 pixels, got 64 x 31' in message

    def test_unknown_block(self, fails, detector, image):
        message = fails(explore_contmix.main, *detector, image, '--blocks', 'focus3.0', 'focus3.9')
        assert "no block 'focus3.9'" in message
        assert 'focus3.0, focus3.1, focus4.0' in message

    def test_checkpoint_of_another_variant(self, fails, detector, image, tmp_path):
        path = tmp_path / 'xt.pth'
        weights = {f'backbone.{k}': v for k, v in OverLoCK('xt').state_dict().items()}
        torch.save({'state_dict': weights}, path)
        message = fails(explore_contmix.main, detector[0], path, image)
        assert str(path) in message and "variant 'xt'" in message

    def test_output_that_cannot_be_written(self, fails, detector, image, tmp_path):
        in_the_way = tmp_path / 'file'
        in_the_way.write_text('')
        out = in_the_way / 'page.html'
        message = fails(explore_contmix.main, *detector, image, '--out', out)
        assert f'{str(out)!r} cannot be written' in message
        assert 'must end in .html' in fails(
            explore_contmix.main, *detector, image, '--out', 'page.txt'
        )

    def test_model_without_contmix(self, fails, image, tmp_path):
        config = tmp_path / 'resnet.py'
        backbone = "dict(_delete_=True, type='mmdet.ResNet', depth=18)"
        config.write_text(
            f'_base_ = {DEMO!r}\nmodel = dict(backbone={backbone}, neck=dict(in_channels=[64, 128, '
            '256, 512]))\n'
        )
        with DefaultScope.overwrite_default_scope('mmdet'):
            resnet = MODELS.build(load_config(config).model)
        path = tmp_path / 'resnet.pth'
        torch.save({'state_dict': resnet.state_dict()}, path)
        message = fails(explore_contmix.main, config, path, image)
        assert 'must be an OverLoCK or have one as its backbone' in message
        assert 'with the backbone ResNet' in message

    def test_place_outside_the_image(self, fails, detector, image, tmp_path):
        out = tmp_path / 'kernels.png'
        message = fails(
            explore_contmix.main, *detector, image, '--figure', out, '--position', 140, 0
        )
        assert 'within the 140 x 100 pixels' in message
        assert not out.exists()

    def test_group_that_a_block_lacks(self, fails, detector, image, tmp_path):
        place = ['--position', 0, 0, '--group', 4]
        message = fails(
            explore_contmix.main, *detector, image, '--figure', tmp_path / 'a.png', *place
        )
        assert 'focus3.0 has the groups 0 to 3, got 4' in message

    def test_figure_without_a_place(self, detector, image, capsys):
        with pytest.raises(SystemExit):
            explore_contmix.main([*detector, str(image), '--figure', 'a.png'])
        assert '--figure and --position go together' in capsys.readouterr().err
