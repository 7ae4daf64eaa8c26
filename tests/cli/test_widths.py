"""What reads the backbone expects the widths of its outputs."""

import pytest
from mmengine.config import Config

from overlock_mm.cli.preflight import check_widths

OF_T = [64, 128, 384, 640]


def config(outputs=(0, 1, 2, 3), arch='t', **model):
    backbone = dict(type='mmdet.OverLoCK', arch=arch, out_indices=outputs)
    return Config(dict(model=dict(backbone=backbone, **model)))


RIGHT = {
    'neck': config(neck=dict(in_channels=OF_T), decode_head=dict(in_channels=256)),
    'list of necks': config(neck=[dict(in_channels=OF_T), dict(in_channels=256)]),
    'three outputs': config((1, 2, 3), neck=dict(in_channels=OF_T[1:])),
    'last map': config(decode_head=dict(in_channels=640)),
    'indices': config(
        decode_head=[dict(in_channels=[384, 640], in_index=[2, 3])],
        auxiliary_head=dict(in_channels=384, in_index=2),
    ),
    'panoptic head': config(panoptic_head=dict(in_channels=OF_T)),
    'neck without widths': config(neck=dict(type='GlobalAveragePooling')),
    'overview': config((3, 4), head=dict(in_channels=[640, 512])),
    'another backbone': Config(
        dict(model=dict(backbone=dict(type='ResNet'), neck=dict(in_channels=[1])))
    ),
}
WRONG = {
    'neck of another variant': (
        config(arch='b', neck=dict(in_channels=OF_T)),
        'model.neck.in_channels=[80,160,528,720]',
    ),
    'one output less': (
        config((1, 2, 3), neck=dict(in_channels=OF_T)),
        'model.neck.in_channels=[128,384,640]',
    ),
    'auxiliary head': (
        config(decode_head=dict(in_channels=640), auxiliary_head=dict(in_channels=640, in_index=2)),
        'model.auxiliary_head.in_channels=384',
    ),
    'list of heads': (
        config(decode_head=[dict(in_channels=[64, 640], in_index=[2, 3])]),
        'model.decode_head.0.in_channels=[384,640]',
    ),
    'panoptic head': (
        config(arch='s', panoptic_head=dict(in_channels=OF_T)),
        'model.panoptic_head.in_channels=[64,128,448,640]',
    ),
}


@pytest.mark.parametrize('case', RIGHT)
def test_right_widths_pass(case):
    check_widths(RIGHT[case])


@pytest.mark.parametrize('case', WRONG)
def test_wrong_widths_are_told_with_the_option_to_set(case):
    cfg, option = WRONG[case]
    with pytest.raises(ValueError) as caught:
        check_widths(cfg)
    assert f'Set --cfg-options {option}.' in str(caught.value)
