"""One training step on a fixed batch; writes what it changed. Started by test_data_parallel.py.

data_parallel_step.py FILE [BlockFSDPStrategy]

Under torchrun each process takes its part of the batch. Everything is in float64, and batch norms
use their running statistics, so the result does not depend on how the batch was divided. The step
is one of plain gradient descent at a rate of 1, so that the change is the gradient.
"""

import os
import sys

import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import STRATEGIES
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

import overlock_mm.engine.sharding  # noqa: F401  (registers the strategy)
from overlock_mm import OverLoCK

IMAGES = 4


class _Regressor(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = OverLoCK(
            arch=dict(channels=(16, 16, 32, 32), depths=(1, 1, 1, 1, 2, 1), groups=(2, 2)),
            norm_eval=True,
        )

    def forward(self, inputs, targets, mode='loss'):
        # A mean over images: equal parts of a batch average to the whole.
        outputs = self.backbone(inputs)
        return sum((x.mean(dim=(1, 2, 3)) - targets).square().mean() for x in outputs)


def main(path, strategy=None):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    inputs = torch.randn(IMAGES, 3, 64, 64, dtype=torch.float64)
    targets = torch.randn(IMAGES, dtype=torch.float64)
    model = _Regressor().double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if 'RANK' in os.environ:
        distributed.init_process_group('gloo')
        rank = distributed.get_rank()
        inputs = inputs.chunk(distributed.get_world_size())[rank]
        targets = targets.chunk(distributed.get_world_size())[rank]
    optimizer = dict(optimizer=dict(type='SGD', lr=1.0))
    if strategy is not None:
        sharded = STRATEGIES.build(dict(type=strategy, work_dir=os.path.dirname(path)))
        sharded.prepare(model, optim_wrapper=optimizer)
        wrapped, optimizer = sharded.model, sharded.optim_wrapper
        units = [m for m in wrapped.modules() if isinstance(m, FullyShardedDataParallel)]
        assert len(units) == 1 + sum(model.backbone.arch.depths)
    else:
        wrapped = model
        if 'RANK' in os.environ:
            wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        optimizer = build_optim_wrapper(wrapped, optimizer)
    optimizer.update_params(wrapped(inputs, targets, mode='loss'))
    if strategy is not None:
        sharded.save_checkpoint(f'{path}.full')
        after = torch.load(f'{path}.full', weights_only=False)['state_dict'] if rank == 0 else {}
    else:
        after = model.state_dict()
    if 'RANK' not in os.environ or rank == 0:
        gradients = {name: before[name] - after[name] for name in before}
        torch.save({'gradients': gradients, 'images': len(inputs)}, path)
    if 'RANK' in os.environ:
        distributed.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
