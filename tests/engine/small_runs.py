"""Runs of a second whose every step depends on all random generators."""

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from overlock_mm.cli.arguments import load_tensors_only
from overlock_mm.engine.runner import build_runner
from tools.train import apply_resume, read_starting_checkpoint

IMAGES, BATCH, EPOCHS = 10, 2, 3
ITERATIONS = EPOCHS * IMAGES // BATCH


@DATASETS.register_module()
class Noisy:
    """Every sample is different each time, by all three generators."""

    metainfo = {'classes': ['a']}

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        self.loaded.append(index)
        noise = torch.rand(4) + np.random.rand() + random.random()
        return {'inputs': noise + index}


class Resizing(nn.Module):
    """Draws a size every fourth step and keeps it, as mmdet's ``BatchSyncRandomResize`` does."""

    def __init__(self):
        super().__init__()
        self._input_size = None

    def forward(self, inputs):
        resized = inputs * (self._input_size or 1)
        if self.training and (MessageHub.get_current_instance().get_info('iter') + 1) % 4 == 0:
            self._input_size = random.randint(2, 9)
        return resized


@MODELS.register_module()
class Dropping(BaseModel):
    """Depends on the generators of its process, as drop path, mixing and sampling of boxes do."""

    def __init__(self, resizes=False):
        super().__init__()
        self.resize = Resizing() if resizes else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, inputs, mode='tensor'):
        inputs = self.resize(torch.stack(inputs))
        noise = np.random.rand() + random.random()
        loss = (self.layers(inputs) - noise).square().mean()
        return {'loss': loss} if mode == 'loss' else [loss.detach()]


@METRICS.register_module()
class Draws(BaseMetric):
    """A validation may draw from the generators, too."""

    def process(self, data_batch, data_samples):
        self.results.append(random.random() + torch.rand(1).item())

    def compute_metrics(self, results):
        return {'score': float(np.random.rand())}


class Log(Hook):
    """Notes the losses, and is killed after a step."""

    priority = 'LOWEST'

    def __init__(self, kill_after=None):
        self.losses = {}
        self.batches = []
        self.kill_after = kill_after

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(batch_idx)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = outputs['loss'].item()
        if runner.iter + 1 == self.kill_after:
            raise KeyboardInterrupt


def config(work_dir, by_epoch, workers=0, ema=False, interval=1, save_by_epoch=None, **changes):
    loop = (
        dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=5)
    )
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    cfg = dict(
        model=dict(type='Dropping'),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(type='Noisy'),
            sampler=dict(type=sampler, shuffle=True),
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=workers > 0,
        ),
        train_cfg=loop,
        val_dataloader=dict(
            dataset=dict(type='Noisy'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=BATCH,
        ),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='Draws'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=ITERATIONS),
        default_hooks=dict(
            checkpoint=dict(
                type='AtomicCheckpointHook',
                interval=interval,
                by_epoch=by_epoch if save_by_epoch is None else save_by_epoch,
            )
        ),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)] if ema else [],
        default_scope='mmengine',
        log_level='WARNING',
        load_from=None,
        resume=False,
    )
    return Config(cfg | changes)


def train(cfg, log=None, resume=False):
    """Train as the tool does, until the hook ``log`` kills the run; returns that hook."""
    log = log or Log()
    load_tensors_only()
    if resume:
        apply_resume(cfg, 'auto')
        read_starting_checkpoint(cfg)
    cfg.experiment_name = f'{cfg.work_dir}-{id(log)}'
    runner = build_runner(cfg)
    runner.register_hook(log)
    try:
        runner.train()
    except KeyboardInterrupt:
        assert log.kill_after is not None
    # Left to the garbage collector, workers end after five seconds each.
    iterator = runner.train_dataloader._iterator
    if iterator is not None:
        iterator._shutdown_workers()
    return log
