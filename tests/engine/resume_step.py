"""Runs of two processes, uninterrupted and resumed. Started by test_resume_distributed.py.

torchrun resume_step.py FOLDER CASE...

Writes the losses of each process, by step, to ``FOLDER/CASE_RANK.json``.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

import overlock_mm.engine.sharding  # noqa: F401  (registers the strategy)
from tests.engine.small_runs import Log, config, train
from tests.fixtures import forget_globals_of_mmengine

CASES = {
    'epochs': dict(by_epoch=True, workers=1, ema=True),
    'iterations': dict(by_epoch=False, interval=2, model=dict(type='Dropping', resizes=True)),
    'mid-epoch': dict(by_epoch=True, save_by_epoch=False, interval=3),
    'shards': dict(by_epoch=True, save_by_epoch=False, interval=3),
}
KILLED_AFTER = 5


def settings(case, folder, **changes):
    """A config of a run of two processes, on CPUs."""
    cfg = config(folder, **CASES[case], **changes)
    cfg.launcher = 'pytorch'
    cfg.log_level = 'INFO'
    # Five samples for each process; a batch of one is too few for a batch norm.
    cfg.train_dataloader.drop_last = True
    cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    if case == 'shards':
        cfg.runner_type = 'FlexibleRunner'
        cfg.strategy = dict(type='BlockFSDPStrategy')
    else:
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    return cfg


def main(folder, *cases):
    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    for case in cases:
        seed = dict(seed=7)
        whole, killed = (Path(folder, f'{case}_{name}') for name in ('whole', 'killed'))
        runs = [
            train(settings(case, whole, randomness=seed)),
            train(settings(case, killed, randomness=seed), Log(kill_after=KILLED_AFTER)),
        ]
        distributed.barrier()
        forget_globals_of_mmengine()
        runs.append(train(settings(case, killed), resume=True))
        path = Path(folder, f'{case}_{distributed.get_rank()}.json')
        path.write_text(json.dumps([run.losses for run in runs]))
        forget_globals_of_mmengine()
    distributed.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
