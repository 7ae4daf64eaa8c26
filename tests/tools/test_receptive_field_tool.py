"""receptive_field.py: networks of any library side by side, and what it refuses."""

import json

import pytest
import torch
from PIL import Image

from overlock_mm import OverLoCK
from tools.visualization import receptive_field as tool

RESNET = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, out_indices=(2, 3)),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64),
)
"""
TRANSFORMER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16),
        img_size=64,
        patch_size=16,
    ),
)
"""


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / 'other.py'
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(scope='module')
def other_variant(tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'xt.pth'
    torch.save({'state_dict': OverLoCK('xt').state_dict()}, path)
    return path


def test_networks_outputs_and_sizes_side_by_side(untrained, config, pictures, tmp_path, capsys):
    out = tmp_path / 'figures' / 'field.png'
    segmentor, weights = untrained('segmentation')
    arguments = [segmentor, weights, '--compare', config(RESNET), '--sizes', '64', '96']
    content = tool.main([*arguments, '--images', str(pictures), '--out', str(out)])
    assert content == json.loads(out.with_suffix('.json').read_text())
    assert content['num_images'] == 2
    entries = [(f['network'], f['trained'], f['output'], f['size']) for f in content['fields']]
    assert entries == [
        ('upernet_small', True, 'focus4', 64),
        ('upernet_small', True, 'focus4', 96),
        ('other', False, 'out1', 64),
        ('other', False, 'out1', 96),
    ]
    for field in content['fields']:
        sides = list(field['side'].values())
        assert sides == sorted(sides)
        assert field['side_ratio']['0.99'] == pytest.approx(sides[-1] / field['size'], abs=1e-4)
    with Image.open(out) as figure:
        assert min(figure.size) > 500
    printed = capsys.readouterr().out
    assert 'other, random weights' in printed
    assert sorted(p.name for p in out.parent.iterdir()) == ['field.json', 'field.png']


def test_an_output_that_does_not_exist(fails, untrained, tmp_path):
    config, _ = untrained('segmentation')
    message = fails(tool.main, config, '--outputs', 'focus5', '--out', tmp_path / 'field.png')
    assert "no output 'focus5'" in message
    assert 'base1, base2, base3, overview, focus3, focus4, out0' in message
    assert not list(tmp_path.iterdir())


def test_a_network_without_spatial_output(fails, config, tmp_path):
    path = config(TRANSFORMER)
    message = fails(tool.main, path, '--sizes', '64', '--out', tmp_path / 'field.png')
    assert "'out0' of other has no spatial positions: it is [1, 16]" in message


def test_a_checkpoint_of_another_variant(fails, untrained, other_variant, tmp_path):
    config, _ = untrained('segmentation')
    message = fails(tool.main, config, other_variant, '--out', tmp_path / 'field.png')
    assert "variant 'xt'" in message


def test_weights_that_are_not_finite(fails, untrained, tmp_path):
    config, weights = untrained('segmentation')
    content = torch.load(weights, weights_only=True)
    for name, value in content['state_dict'].items():
        if name.startswith('backbone.focus_net') and value.is_floating_point():
            value.fill_(float('nan'))
    torch.save(content, tmp_path / 'nan.pth')
    message = fails(
        tool.main, config, tmp_path / 'nan.pth', '--sizes', '64', '--out', tmp_path / 'field.png'
    )
    assert 'not finite' in message
    assert not (tmp_path / 'field.png').exists()


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (['--num', '0'], '--num must be positive, got 0'),
        (['--sizes', '16'], '--sizes must be at least 32, got 16'),
        (['--compare', 'a', 'b', 'c'], "got ['a', 'b', 'c']"),
        (['--images', '/no/where'], '/no/where'),
    ],
)
def test_options_without_sense(fails, untrained, tmp_path, options, expected):
    config, _ = untrained('segmentation')
    assert expected in fails(tool.main, config, *options, '--out', tmp_path / 'field.png')


def test_where_it_cannot_write(fails, untrained, tmp_path):
    config, _ = untrained('segmentation')
    (tmp_path / 'file').write_text('')
    assert 'cannot be written' in fails(tool.main, config, '--out', tmp_path / 'file' / 'f.png')
    assert 'must end in .png' in fails(tool.main, config, '--out', tmp_path / 'field.gif')


def test_a_config_without_a_backbone(fails, config, tmp_path):
    path = config("default_scope = 'mmpretrain'\n")
    message = fails(tool.main, path, '--out', tmp_path / 'field.png')
    assert 'no model with a backbone' in message
