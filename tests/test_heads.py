"""Heads of mmdet and mmseg on this backbone: built, trained for two steps, used for predictions."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from overlock_mm.heads import HEADS, main, page

PAGE = Path(__file__).resolve().parents[1] / 'docs/heads.md'
TINY = dict(channels=(16, 16, 32, 32), depths=(1, 1, 1, 1, 1, 1), groups=(2, 2))
SIZE = 64
#: One detector and one segmentor stand for the others in `make test-fast`.
QUICK = ('RetinaNet', 'Segmenter')
WITH_MASKS = ('Mask2Former (instances)', 'HTC', 'SOLO')
# What a small image has too few tokens for, and what would take most of the time.
SMALLER = {
    'DINO': {'num_queries': 20},
    'Mask2Former (instances)': {
        'train_cfg.num_points': 64,
        'panoptic_head.num_queries': 10,
        'panoptic_head.transformer_decoder.num_layers': 1,
        'panoptic_head.pixel_decoder.encoder.num_layers': 1,
    },
    'Mask2Former (semantic)': {
        'decode_head.train_cfg.num_points': 64,
        'decode_head.num_queries': 10,
        'decode_head.transformer_decoder.num_layers': 1,
        'decode_head.pixel_decoder.encoder.num_layers': 1,
    },
}


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text() == page(), 'run python -m overlock_mm.heads > docs/heads.md'


def test_the_config_of_one_head_is_printed(capsys):
    main(['RetinaNet', 'b'])
    printed = capsys.readouterr().out
    assert "arch='b'" in printed
    assert 'in_channels=[160, 528, 720]' in printed


@pytest.mark.parametrize(
    'head',
    [pytest.param(head, marks=() if head.name in QUICK else pytest.mark.slow) for head in HEADS],
    ids=[head.name for head in HEADS],
)
def test_two_steps_and_a_prediction(head, tmp_path):
    path = tmp_path / 'head.py'
    path.write_text(head.config(TINY))
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({f'model.{k}': v for k, v in SMALLER.get(head.name, {}).items()})
    init_default_scope(head.library)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    optimizer = dict(cfg.optim_wrapper, type='OptimWrapper')
    optimizer.pop('dtype', None)
    optimizer.pop('loss_scale', None)
    optim_wrapper = build_optim_wrapper(model, optimizer)
    data = _detection_data(head) if head.library == 'mmdet' else _segmentation_data()
    # Read every few steps by what resizes batches.
    MessageHub.get_current_instance().update_info('iter', 0)
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without_gradient = set(trained)
    for name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: without_gradient.discard(name)
        )
    for _ in range(2):
        losses = model.train_step(data, optim_wrapper)
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
    # One is an error in data-parallel training.
    assert without_gradient == set()
    model.eval()
    with torch.no_grad():
        predictions = model.val_step(data)
    assert len(predictions) == 2


def _detection_data(head):
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(
        2,
        [(3, SIZE, SIZE)] * 2,
        num_items=[2, 3],
        num_classes=80,
        with_mask=head.name in WITH_MASKS,
        with_semantic=head.name == 'HTC',
    )


def _segmentation_data():
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        sample = SegDataSample(
            metainfo=dict(
                img_shape=(SIZE, SIZE),
                ori_shape=(SIZE, SIZE),
                pad_shape=(SIZE, SIZE),
                scale_factor=(1.0, 1.0),
                flip=False,
            )
        )
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, SIZE, SIZE)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)
