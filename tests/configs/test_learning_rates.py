"""The learning rate at every step of a run, against formulas of the published schedulers.

The runs are mmengine's own, of a model with one parameter. They have the real number of epochs,
each of a few iterations, or are the first iterations of a longer run.
"""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

#: timm 0.6.12: ``--epochs 300``, to which the scheduler adds ``--cooldown-epochs``, 10 by default.
IMAGENET_EPOCHS = 310


class OneParameter(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs, mode='loss'):
        return {'loss': self.weight}


class Recorder(Hook):
    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


def run(cfg, work_dir, epoch_length, **train_cfg):
    """The rates at all steps of a run whose epochs have ``epoch_length`` iterations."""
    recorder = Recorder()
    runner = Runner(
        model=OneParameter(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=list(range(epoch_length)),
            sampler=dict(type='InfiniteSampler' if 'max_iters' in train_cfg else 'DefaultSampler'),
            batch_size=1,
        ),
        train_cfg=dict(cfg.train_cfg, val_interval=10**9, **train_cfg),
        optim_wrapper=dict(optimizer=cfg.optim_wrapper.optimizer),
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict(logger=None, checkpoint=None, timer=None),
        custom_hooks=[recorder],
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name='rates',
        cfg=Config({}),
    )
    runner.train()
    return recorder.rates


def first_generation_warm_up(step, iterations, ratio):
    """``warmup='linear'`` of mmcv 1.7.2: by how much the regular rate is multiplied."""
    return 1 - (1 - step / iterations) * (1 - ratio) if step < iterations else 1.0


@pytest.mark.parametrize(
    ('name', 'peak', 'epochs', 'drops'),
    [
        ('mask_rcnn_overlock_t_1x', 2e-4, 12, (8, 11)),
        ('mask_rcnn_overlock_t_3x', 1e-4, 36, (27, 33)),
        # Not published; the rate of Mask R-CNN 3x.
        ('cascade_overlock_t', 1e-4, 36, (27, 33)),
    ],
)
def test_detection(name, peak, epochs, drops, load, tmp_path):
    length = 600 // epochs
    rates = run(load(f'detection/{name}.py'), tmp_path, length)
    assert len(rates) == epochs * length
    expected = [
        peak
        * first_generation_warm_up(step, 500, 1e-3)
        * 0.1 ** sum(step // length >= drop for drop in drops)
        for step in range(len(rates))
    ]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_segmentation(load, tmp_path):
    rates = run(load('segmentation/upernet_overlock_t.py'), tmp_path, 10, max_iters=1700)
    # The policy "poly" falls beneath the warm-up, from the first iteration on.
    expected = [
        6e-5 * (1 - step / 160_000) * first_generation_warm_up(step, 1500, 1e-6)
        for step in range(1700)
    ]
    assert rates == pytest.approx(expected, rel=1e-10)


def timm_cosine(epoch):
    """``CosineLRScheduler`` of timm 0.6.12: 5 epochs of warm-up, counted into the 300 or not."""
    if epoch < 5:
        return 1e-6 + epoch * (2e-3 - 1e-6) / 5
    if epoch >= 300:
        return 1e-5
    return 1e-5 + 0.5 * (2e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300))


def test_classification(load, tmp_path):
    rates = run(load('classification/overlock_t.py'), tmp_path, 2)
    expected = [timm_cosine(step // 2) for step in range(2 * IMAGENET_EPOCHS)]
    # The cosine also acts during the warm-up.
    assert rates[:10] == pytest.approx(expected[:10], rel=5e-4)
    assert rates[10:] == pytest.approx(expected[10:], rel=2e-6)
